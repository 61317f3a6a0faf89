package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/cluster"
)

func memberOf(t *testing.T) cluster.Config {
	t.Helper()
	c := cluster.Config{DataDir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(c.StateDir(), "member", "snap"), 0o700); err != nil {
		t.Fatal(err)
	}
	return c
}

// What a member of the state store had that is none any more is removed, or set
// aside when it was lost with its incarnation.
func TestRetire(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, aside := range []string{"", "incarnation-1"} {
		c := memberOf(t)
		if err := os.WriteFile(filepath.Join(c.StateDir(), startFile), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ClearRetired(c, now); err != nil || !hasMember(c) {
			t.Fatalf("cleared without being asked: %v", err)
		}
		if err := Retire(c, aside); err != nil || !Retired(c) {
			t.Fatalf("retire: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		untilRetired(ctx, c)
		if ctx.Err() != nil {
			t.Error("the state unit would not have noticed")
		}
		cancel()
		if err := ClearRetired(c, now); err != nil || hasMember(c) || Retired(c) {
			t.Fatalf("clear: %v", err)
		}
		if _, found, _ := readStart(c); found {
			t.Error("how to start is left, and would make it a member again")
		}
		left, err := filepath.Glob(c.StateDir() + ".*")
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case aside == "" && len(left) > 0:
			t.Errorf("left is %v", left)
		case aside != "" && (len(left) != 1 || !strings.HasSuffix(left[0], "state.incarnation-1-20260102T030405")):
			t.Errorf("set aside are %v", left)
		case aside != "":
			if _, err := os.Stat(filepath.Join(left[0], "member", "snap")); err != nil {
				t.Error(err)
			}
		}
	}
}

// A node that was told how to start a member, and is none now, forgets it.
func TestRetireBeforeStart(t *testing.T) {
	c := cluster.Config{DataDir: t.TempDir()}
	if err := Retire(c, ""); err != nil {
		t.Fatal(err)
	}
	if err := writeStart(c, cluster.MemberStart{Cluster: "c"}); err != nil {
		t.Fatal(err)
	}
	if err := Retire(c, ""); err != nil {
		t.Fatal(err)
	}
	if _, found, err := readStart(c); found || err != nil || Retired(c) {
		t.Errorf("found %v, %v", found, err)
	}
}
