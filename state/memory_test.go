package state_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
	"github.com/drover-data/drover/state/statetest"
)

func TestMemory(t *testing.T) {
	statetest.Run(t, func(t *testing.T) statetest.Harness {
		m := state.NewMemory()
		return statetest.Harness{
			KV:      m,
			Compact: func(*testing.T) { m.Compact() },
			Break: func(*testing.T) func() {
				m.Break("no quorum")
				return func() { m.Break("") }
			},
			TTL: 50 * time.Millisecond,
		}
	})
}

func TestUpdateRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := state.NewMemory()
		s := state.New(kv)
		runs := 0
		err := s.Update(t.Context(), func(tx *state.Tx) error {
			runs++
			v, _, err := state.Names.Get(tx, "pg")
			if err != nil && !api.Is(err, api.NotFound) {
				return err
			}
			if runs < 4 { // a competitor, three times
				other := fmt.Sprintf("%q", fmt.Sprint("other", runs))
				if _, err := kv.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: state.Names.Key("pg"), Value: []byte(other)}}}); err != nil {
					return err
				}
			}
			return state.Names.Put(tx, "pg", v+"+mine")
		})
		if err != nil || runs != 4 {
			t.Fatalf("%d runs, %v", runs, err)
		}
		_ = s.View(t.Context(), func(tx *state.Tx) error {
			if v, _, _ := state.Names.Get(tx, "pg"); v != "other3+mine" {
				t.Errorf("%q", v)
			}
			return nil
		})
	})
}

func TestUpdateGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := state.NewMemory()
		n := 0
		err := state.New(kv).Update(t.Context(), func(tx *state.Tx) error {
			if _, _, err := state.Names.Get(tx, "pg"); err != nil && !api.Is(err, api.NotFound) {
				return err
			}
			n++
			_, err := kv.Commit(t.Context(), state.Txn{Put: []state.Put{{Key: state.Names.Key("pg"), Value: fmt.Appendf(nil, "%q", fmt.Sprint(n))}}})
			if err != nil {
				return err
			}
			return state.Names.Put(tx, "pg", "mine")
		})
		if !api.Is(err, api.Conflict) {
			t.Fatal(err)
		}
	})
}

func TestUpdateKeepsErrors(t *testing.T) {
	kv := state.NewMemory()
	s := state.New(kv)
	mine := errors.New("mine")
	err := s.Update(t.Context(), func(tx *state.Tx) error {
		if err := state.Names.Put(tx, "pg", "x"); err != nil {
			return err
		}
		return mine
	})
	if err != mine {
		t.Fatal(err)
	}
	if items, _, _ := kv.Get(t.Context(), state.Names.Key("pg")); items[0].Mod != 0 {
		t.Fatal("an Update that failed changed something")
	}
	kv.Break("no quorum")
	if err := s.Update(t.Context(), func(tx *state.Tx) error { return state.Names.Put(tx, "pg", "x") }); !api.Is(err, api.Unavailable) {
		t.Fatal(err)
	}
}

func TestTxSeesItself(t *testing.T) {
	s := state.New(state.NewMemory())
	err := s.Update(t.Context(), func(tx *state.Tx) error {
		if err := state.Names.Put(tx, "pg", "1"); err != nil {
			return err
		}
		if v, mod, err := state.Names.Get(tx, "pg"); v != "1" || mod != -1 || err != nil {
			t.Errorf("after put: %q at %d, %v", v, mod, err)
		}
		state.Names.Delete(tx, "pg")
		if _, _, err := state.Names.Get(tx, "pg"); !api.Is(err, api.NotFound) {
			t.Errorf("after delete: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFollow keeps a follower's picture equal to the store through changes,
// a compaction that it missed and an outage.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := state.NewMemory()
		s := state.New(kv)
		ctx, cancel := context.WithCancel(t.Context())
		set := func(id, v string) {
			t.Helper()
			if err := s.Update(ctx, func(tx *state.Tx) error { return state.Names.Put(tx, id, v) }); err != nil {
				t.Fatal(err)
			}
		}
		set("a/1", "one")
		set("b/1", "not followed")
		picture := map[string]string{}
		resets := 0
		done := make(chan error)
		go func() {
			done <- state.Names.Follow(ctx, s, "a/", func(all map[string]string) {
				resets++
				picture = maps.Clone(all)
			}, func(c state.Change[string]) {
				if c.Gone {
					delete(picture, c.ID)
				} else {
					picture[c.ID] = c.Value
				}
			})
		}()
		expect := func(wantResets int, want map[string]string) {
			t.Helper()
			synctest.Wait()
			if !maps.Equal(picture, want) || resets != wantResets {
				t.Fatalf("%v after %d resets, expected %v after %d", picture, resets, want, wantResets)
			}
		}
		expect(1, map[string]string{"a/1": "one"})
		set("a/2", "two")
		if err := s.Update(ctx, func(tx *state.Tx) error { state.Names.Delete(tx, "a/1"); return nil }); err != nil {
			t.Fatal(err)
		}
		expect(1, map[string]string{"a/2": "two"})

		// Out of sight: changes and a compaction happen behind its back.
		kv.Break("no quorum")
		synctest.Wait()
		kv.Break("")
		expect(1, map[string]string{"a/2": "two"})
		kv.Break("no quorum")
		synctest.Wait()
		kv.Behind(func() { set("a/3", "three") })
		kv.Compact()
		kv.Break("")
		expect(2, map[string]string{"a/2": "two", "a/3": "three"})

		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

func TestLeadFollowsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := state.NewMemory()
		ctx, cancel := context.WithCancel(t.Context())
		terms := 0
		done := make(chan error)
		go func() {
			done <- state.Lead(ctx, kv, "controller", "n1", func(term context.Context) error {
				terms++
				<-term.Done()
				return nil
			})
		}()
		synctest.Wait()
		items, _, _ := kv.Get(ctx, state.Leaders+"controller")
		if terms != 1 || string(items[0].Value) != "n1" {
			t.Fatalf("%d terms, leader %q", terms, items[0].Value)
		}
		kv.Expire(1)
		synctest.Wait()
		if terms != 2 {
			t.Fatalf("%d terms after the lease was lost", terms)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if items, _, _ := kv.Get(t.Context(), state.Leaders+"controller"); items[0].Mod != 0 {
			t.Fatal("the lead was not given up")
		}
		time.Sleep(time.Minute) // timers of leases end inside the bubble
	})
}

func TestLeadReturnsError(t *testing.T) {
	mine := errors.New("mine")
	err := state.Lead(t.Context(), state.NewMemory(), "controller", "n1", func(context.Context) error { return mine })
	if err != mine {
		t.Fatal(err)
	}
}
