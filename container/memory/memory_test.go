package memory

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/container"
)

func clock() time.Time { return time.Unix(1e9, 0) }

func TestLifeOfAContainer(t *testing.T) {
	ctx := t.Context()
	a, b := New("a", clock, nil), New("b", clock, nil)
	id, err := a.Add(container.Container{Name: "pg", Image: "pg:15", ImageID: "sha256:1", Mounts: []container.Mount{{Volume: "pg", Driver: "drover"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func() error
		want container.State
	}{
		{"start", func() error { return a.Start(ctx, "pg") }, container.Running},
		{"start again", func() error { return a.Start(ctx, id) }, container.Running},
		{"pause", func() error { return a.Pause(ctx, id) }, container.Paused},
		{"unpause", func() error { return a.Unpause(ctx, id) }, container.Running},
		{"stop", func() error { return a.Stop(ctx, id, 0) }, container.Exited},
		{"stop again", func() error { return a.Stop(ctx, id, 0) }, container.Exited},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if c, err := a.Inspect(ctx, id); err != nil || c.State != step.want {
			t.Fatalf("%s: %v %v", step.name, c.State, err)
		}
	}
	spec, err := a.Export(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.CheckImport(ctx, spec); !api.Is(err, api.NotFound) {
		t.Errorf("without its image: %v", err)
	}
	b.AddImage("sha256:1")
	made, err := b.Import(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.Import(ctx, spec); err != nil || again != made {
		t.Errorf("again: %q %v, want %q", again, err, made)
	}
	other := spec
	other.Data = append([]byte(" "), spec.Data...)
	if _, err := b.Import(ctx, other); !api.Is(err, api.Exists) {
		t.Errorf("another of that name: %v", err)
	}
	if list, err := b.List(ctx, "drover"); err != nil || len(list) != 1 || list[0].State != container.Created {
		t.Errorf("list: %v %v", list, err)
	}
	if list, err := b.List(ctx, "local"); err != nil || len(list) != 0 {
		t.Errorf("list of another driver: %v %v", list, err)
	}
	for range 2 {
		if err := a.Remove(ctx, id); err != nil {
			t.Error(err)
		}
	}
}

func TestFaults(t *testing.T) {
	ctx := t.Context()
	broken := errors.New("broken")
	e := New("a", clock, func(op, id string) error {
		if op == "stop" && id == "x" {
			return broken
		}
		return nil
	})
	if _, err := e.Add(container.Container{Name: "x", State: container.Running}); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(ctx, "x", 0); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if err := e.Remove(ctx, "x"); !api.Is(err, api.InUse) {
		t.Errorf("removing a running one: %v", err)
	}
	e.SetDown(true)
	if _, err := e.List(ctx, ""); !api.Is(err, api.Unavailable) {
		t.Errorf("an engine that is down: %v", err)
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New("a", clock, nil)
		var seen []string
		go func() { _ = e.Watch(t.Context(), func(id string) { seen = append(seen, id) }) }()
		synctest.Wait()
		id, err := e.Add(container.Container{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(e.Start(t.Context(), id), e.Start(t.Context(), id), e.End(id, 3)); err != nil {
			t.Fatal(err)
		}
		e.SetDown(true)
		e.SetDown(false)
		want := []string{"", id, id, id, ""}
		if len(seen) != len(want) {
			t.Fatalf("seen %q, want %q", seen, want)
		}
		for i := range want {
			if seen[i] != want[i] {
				t.Fatalf("seen %q, want %q", seen, want)
			}
		}
	})
}
