//go:build lab

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Who may not join is told why.
func TestJoinRefused(t *testing.T) {
	w := newWorld(t, 2, "1G")
	token := func() string { return w.run("node1", "drover", "node", "token") }
	join := func(token string, more ...string) []string {
		return append([]string{"drover", "join", token, "--no-start", "--data-dir", "/var/lib/other", "--api-port", "7533", "--state-port", "7534", "--peer-port", "7535"}, more...)
	}
	good := token()
	w.refused("node2", []string{"node1", "name"}, join(good, "--name", "node1")...)
	w.refused("node2", []string{"10.99.77.77", "cannot listen"}, join(good, "--name", "other", "--advertise", "10.99.77.77")...)
	broken := strings.Replace(good, good[20:24], "0000", 1)
	w.refused("node2", []string{"token"}, join(broken, "--name", "other")...)
	w.refused("node2", []string{"token"}, join("nonsense", "--name", "other")...)
	w.run("node2", join(good, "--name", "other")...)
	w.refused("node2", []string{"used"}, "drover", "join", good, "--no-start", "--name", "another", "--data-dir", "/var/lib/another", "--api-port", "7633", "--state-port", "7634", "--peer-port", "7635")
	revoked := token()
	w.run("node1", "drover", "node", "token", "rm", strings.Split(revoked, ".")[1])
	w.refused("node2", []string{"token"}, "drover", "join", revoked, "--no-start", "--name", "another", "--data-dir", "/var/lib/another", "--api-port", "7633", "--state-port", "7634", "--peer-port", "7635")
	w.refused("node2", []string{"belongs to cluster"}, "drover", "join", token(), "--no-start")
	w.refused("node2", []string{"belongs to cluster"}, "drover", "init", "--no-start")
}

// A node is drained, with the containers that use its volumes, and removed.
func TestDrainAndRemove(t *testing.T) {
	w := newWorld(t, 3, "1G")
	for i := range 3 {
		w.busybox("node2", fmt.Sprintf("vol%d", i), fmt.Sprintf("echo %d > /d/f", i))
	}
	w.run("node2", "docker", "run", "-d", "--name", "app", "--volume-driver", "drover", "-v", "vol0:/d", image, "sleep", "1000")
	w.refused("node1", []string{"vol0"}, "drover", "node", "rm", "node2")
	w.run("node1", "drover", "node", "drain", "node2")
	for i := range 3 {
		if owner := w.owner("node1", fmt.Sprintf("vol%d", i)); owner == "node2" || owner == "" {
			t.Errorf("vol%d is on %q", i, owner)
		}
	}
	w.refused("node1", []string{"drained"}, "drover", "volume", "move", "vol1", "node2")
	w.until("the container runs elsewhere", func() error {
		for _, n := range []string{"node1", "node3"} {
			if out := w.run(n, "docker", "ps", "-q", "-f", "name=app"); out != "" {
				return nil
			}
		}
		return errors.New("it runs nowhere")
	})
	w.run("node2", "docker", "rm", "app")
	w.until("node2 may be removed", func() error {
		out, err := w.try("node1", "drover", "node", "rm", "node2")
		if err != nil {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.until("node2 is refused", func() error {
		if out, err := w.try("node2", "drover", "volume", "ls"); err == nil {
			return errors.New(out)
		}
		return nil
	})
	w.until("the others go on", func() error {
		if out, err := w.try("node3", "drover", "node", "ls"); err != nil || strings.Contains(out, "node2") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.equal(w.busybox("node1", "vol2", "cat /d/f"), "2")
}

// A node that is gone for good: its volume goes on from what another node
// holds, on a person's word; what the node had is kept when it comes back.
func TestRecoverVolume(t *testing.T) {
	w := newWorld(t, 3, "1G")
	w.until("there are three voters", func() error {
		if out, err := w.try("node1", "drover", "node", "ls"); err != nil || strings.Count(out, "voter") != 3 {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.busybox("node1", "vol", "echo early > /d/f")
	w.equal(w.busybox("node2", "vol", "cat /d/f"), "early") // node1 keeps the snapshot that both hold
	w.busybox("node2", "vol", "echo late > /d/f; sync")
	w.refused("node3", []string{"node2 answers", "volume move"}, "drover", "volume", "recover", "vol", "node1", "--owner-is-dead", "--accept-loss")
	if err := w.host("node2").PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until("node2 is known to be silent", func() error {
		if out, err := w.try("node1", "drover", "node", "ls"); err != nil || !strings.Contains(out, "unknown since") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.refused("node1", []string{"this loses everything written on node2 after", "--owner-is-dead"}, "drover", "volume", "recover", "vol", "node1")
	w.refused("node1", []string{"node3 holds no snapshot"}, "drover", "volume", "recover", "vol", "node3", "--owner-is-dead", "--accept-loss")
	w.run("node1", "drover", "volume", "recover", "vol", "node1", "--owner-is-dead", "--accept-loss")
	w.equal(w.busybox("node1", "vol", "cat /d/f"), "early")
	if err := w.host("node2").PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until("node2 says what it holds", func() error {
		out, err := w.try("node2", "drover", "events")
		if err != nil || !strings.Contains(out, "took the head over") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	w.equal(w.run("node2", "sh", "-c", "cat /var/lib/drover/pools/default/heads/*/main/data/f"), "late")
	w.equal(w.busybox("node3", "vol", "cat /d/f"), "early")
}

// voters fails while the state store has not so many voters.
func (w *world) voters(n int) error {
	w.t.Helper()
	if out, err := w.try("node1", "drover", "node", "ls"); err != nil || strings.Count(out, "voter") != n {
		return fmt.Errorf("%v: %s", err, out)
	}
	return nil
}

// The state store's third member moves away from a node that drains, and comes
// back to it: what the node had of it before is not in the way.
func TestMemberMoves(t *testing.T) {
	w := newWorld(t, 4, "512M")
	part := func(node, want string) {
		w.until(node+" is "+want, func() error {
			out, err := w.try("node1", "drover", "node", "inspect", node)
			if err != nil || !hasLine(out, "state store", want) {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
	}
	var members, spare []string
	w.until("there are three voters", func() error {
		members, spare = nil, nil
		for _, n := range []string{"node2", "node3", "node4"} {
			out, err := w.try("node1", "drover", "node", "inspect", n)
			if err != nil {
				return err
			}
			if hasLine(out, "state store", "voter") {
				members = append(members, n)
			} else {
				spare = append(spare, n)
			}
		}
		if len(members) != 2 {
			return fmt.Errorf("members are node1 and %v", members)
		}
		return nil
	})
	out, in := members[0], spare[0]
	w.run("node1", "drover", "node", "drain", out)
	part(in, "voter")
	part(out, "none")
	w.until(out+" has cleared up", func() error {
		if left, err := w.try(out, "ls", "/var/lib/drover/state"); err == nil {
			return errors.New(left)
		}
		return nil
	})
	w.run("node1", "drover", "node", "drain", "--stop", out)
	w.run("node1", "drover", "node", "drain", in)
	part(out, "voter")
	part(in, "none")
	w.equal(w.busybox(out, "vol", "echo 1 > /d/f; cat /d/f"), "1")
}
