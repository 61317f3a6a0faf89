//go:build lab

package docker

import (
	"slices"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/lab"
)

// TestTwins: Docker's own volumes are listed with who names them, and removed
// only when nobody does.
func TestTwins(t *testing.T) {
	l, engines := hosts(t, 1)
	e, h, ctx := engines[0], l.Hosts()[0], t.Context()
	for _, args := range [][]string{
		{"volume", "create", "free"},
		{"volume", "create", "used"},
		{"create", "--name", "holder", "-v", "used:/data", lab.BusyboxImageName, "true"},
	} {
		if out, err := h.Docker(ctx, args...); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	find := func(name string) (LocalVolume, bool) {
		t.Helper()
		list, err := e.LocalVolumes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(v LocalVolume) bool { return v.Name == name })
		if i < 0 {
			return LocalVolume{}, false
		}
		return list[i], true
	}
	if v, ok := find("free"); !ok || v.Dir != "/var/lib/docker/volumes/free/_data" || len(v.UsedBy) != 0 {
		t.Errorf("got %+v %v", v, ok)
	}
	if v, ok := find("used"); !ok || !slices.Equal(v.UsedBy, []string{"/holder"}) {
		t.Errorf("got %+v %v", v, ok)
	}
	if err := e.RemoveLocal(ctx, "used"); !api.Is(err, api.InUse) && !api.Is(err, api.Conflict) {
		t.Errorf("removing what a container names: %v", err)
	}
	if err := e.RemoveLocal(ctx, "none"); !api.Is(err, api.NotFound) {
		t.Errorf("removing nothing: %v", err)
	}
	if err := e.RemoveLocal(ctx, "free"); err != nil {
		t.Error(err)
	}
	if _, ok := find("free"); ok {
		t.Error("it is still there")
	}
	if _, ok := find("used"); !ok {
		t.Error("the one in use is gone")
	}
}
