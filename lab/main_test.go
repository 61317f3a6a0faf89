package lab

import (
	"net/netip"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == HostCommand {
		os.Exit(HostMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == makerCommand {
		os.Exit(makerMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func TestOptionsNameEveryProblem(t *testing.T) {
	o := Options{Nodes: 999, Dir: "/run/x", Services: []Service{{Name: "a"}, {Name: "dockerd", Args: []string{"x"}, Restart: "maybe"}}}
	err := o.complete()
	if !api.Is(err, api.Invalid) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"999 hosts", "lies in /run", "service a: no command", `unknown restart policy "maybe"`, `"dockerd" is taken`} {
		if !contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

func contains(s, part string) bool {
	for i := 0; i+len(part) <= len(s); i++ {
		if s[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

func TestPickSubnetNeverOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var taken []netip.Prefix
		for range rapid.IntRange(0, 40).Draw(t, "n") {
			a := netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(98, 100).Draw(t, "b")), rapid.Byte().Draw(t, "c"), 0})
			taken = append(taken, netip.PrefixFrom(a, rapid.IntRange(15, 28).Draw(t, "bits")).Masked())
		}
		got, ok := pickSubnet(taken)
		if !ok {
			// Only when all 256 are covered.
			for i := range 256 {
				a := netip.AddrFrom4([4]byte{10, 99, byte(i), 0})
				covered := false
				for _, p := range taken {
					covered = covered || p.Overlaps(netip.PrefixFrom(a, 24))
				}
				if !covered {
					t.Fatalf("10.99.%d.0/24 is free", i)
				}
			}
			return
		}
		for _, p := range taken {
			if got.Overlaps(p) {
				t.Fatalf("%v overlaps %v", got, p)
			}
		}
	})
}

func TestProcessIdentity(t *testing.T) {
	me, err := identify(os.Getpid())
	if err != nil || !me.alive() {
		t.Fatalf("this process is not seen as alive: %v", err)
	}
	other := process{PID: me.PID, Start: me.Start + 1}
	if other.alive() {
		t.Fatal("another start time is another process")
	}
	if err := other.kill(); err != nil {
		t.Fatal(err) // and this process still runs
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/a", "/", true}, {"/a", "/a/b", false}, {"/a/b", "/a/", true}} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("within(%q, %q) = %v", c.path, c.dir, got)
		}
	}
}
