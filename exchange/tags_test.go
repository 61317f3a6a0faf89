package exchange

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

func TestPushTags(t *testing.T) {
	dir := t.TempDir()
	p := newPool(filepath.Join(dir, "pool"))
	ids := chain(t, p, 4)
	ctx := context.Background()
	r := at(dir, nil)
	push := func(force, dry bool, tags map[string]string) ([]string, Pushed, error) {
		t.Helper()
		done, out, err := r.PushTags(ctx, p, PushTags{Tags: tags, Graph: p.commits, Force: force, DryRun: dry})
		var names []string
		for _, x := range done {
			names = append(names, x.Name)
		}
		return names, out, err
	}
	there := func() map[string]string {
		t.Helper()
		l, err := r.List(ctx, true)
		must(t, err)
		out := map[string]string{}
		for _, x := range l.Tags {
			out[x.Name] = x.ID
		}
		return out
	}
	long := strings.Repeat("very/long-", 12) + "name"
	all := map[string]string{"v1": ids[0], "release/2 of it": ids[2], long: ids[0]}
	done, out, err := push(false, true, all)
	must(t, err)
	if len(done) != 3 || len(out.Commits) != 3 || out.Changed == 0 || len(there()) != 0 {
		t.Errorf("dry run: %v %+v", done, out)
	}
	done, out, err = push(false, false, all)
	must(t, err)
	if len(done) != 3 || !slices.Contains(out.Commits, ids[1]) || len(out.Commits) != 3 {
		t.Errorf("%v %+v", done, out)
	}
	if got := there(); len(got) != 3 || got[long] != ids[0] || got["release/2 of it"] != ids[2] {
		t.Errorf("%v", got)
	}
	if done, out, err = push(false, false, all); err != nil || len(done)+len(out.Commits) > 0 {
		t.Errorf("again: %v %+v %v", done, out, err)
	}
	// One is another commit's there: the others are done all the same.
	done, _, err = push(false, false, map[string]string{"v1": ids[1], "w": ids[3]})
	if !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "v1 (there "+short(ids[0])+", here "+short(ids[1])+")") || !slices.Equal(done, []string{"w"}) {
		t.Errorf("%v %v", done, err)
	}
	done, _, err = push(true, false, map[string]string{"v1": ids[1]})
	must(t, err)
	if got := there(); !slices.Equal(done, []string{"v1"}) || got["v1"] != ids[1] || got["w"] != ids[3] {
		t.Errorf("%v %v", done, got)
	}
	// A commit of which no data is anywhere is named, the others are done.
	done, _, err = push(false, false, map[string]string{"gone": id(77), "x": ids[2]})
	if !api.Is(err, api.NotFound) || !strings.Contains(err.Error(), "gone (") || !slices.Equal(done, []string{"x"}) {
		t.Errorf("%v %v", done, err)
	}
	// A tag that leads to damage is in the way, unless it is forced.
	ref, err := r.Store.Ref(ctx, remote.TagPrefix+"w")
	must(t, err)
	must(t, r.Store.(remote.Collector).Delete(ctx, ref.Desc.Digest))
	if _, _, err = push(false, false, map[string]string{"w": ids[2]}); !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("%v", err)
	}
	_, _, err = push(true, false, map[string]string{"w": ids[2]})
	must(t, err)
	if got := there(); got["w"] != ids[2] {
		t.Errorf("%v", got)
	}
}
