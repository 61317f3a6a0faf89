package doctor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover-data/drover/api"
)

var errDown = errors.New("connection refused")

// fake is a host, an engine and a cluster in one.
type fake struct {
	now      time.Time
	status   api.ClusterStatus
	volumes  []api.Volume
	pools    []api.Pool
	probes   map[string]api.NodeProbe
	down     map[string]bool // of "agent", "docker", "plugin", nodes, addresses
	local    []Local
	full     map[string]bool // directories with files
	mounts   []string
	loops    []string
	removed  []string
	modules  []string
	noLoop   bool
	tools    map[string]string
	free     int64
	taken    map[int]string
	identity Self
}

func (f *fake) err(what string) error {
	if f.down[what] {
		return errDown
	}
	return nil
}

func (f *fake) Kernel() (string, []string, bool)        { return "6.1", f.modules, !f.noLoop }
func (f *fake) Tool(name string) string                 { return f.tools[name] }
func (f *fake) Space(string) (int64, int64, error)      { return f.free, 1000, nil }
func (f *fake) Taken(port int) string                   { return f.taken[port] }
func (f *fake) Reach(_ context.Context, a string) error { return f.err(a) }
func (f *fake) Plugin(context.Context) error            { return f.err("plugin") }
func (f *fake) Empty(dir string) (bool, error)          { return !f.full[dir], f.err(dir) }
func (f *fake) Mounts(string) ([]string, error)         { return f.mounts, nil }
func (f *fake) Loops(string) ([]string, error)          { return f.loops, nil }
func (f *fake) Ping(context.Context) (string, error)    { return "Docker 27", f.err("docker") }
func (f *fake) Local(context.Context) ([]Local, error)  { return f.local, nil }
func (f *fake) RemoveLocal(_ context.Context, name string) error {
	f.removed = append(f.removed, name)
	f.local = slices.DeleteFunc(f.local, func(l Local) bool { return l.Name == name })
	return nil
}

func (f *fake) Status(context.Context) (api.ClusterStatus, error) { return f.status, f.err("agent") }
func (f *fake) Pools(context.Context) ([]api.Pool, error)         { return f.pools, nil }
func (f *fake) Volumes(context.Context) ([]api.Volume, error)     { return f.volumes, f.err("volumes") }
func (f *fake) Probe(_ context.Context, node string) (api.NodeProbe, error) {
	return f.probes[node], f.err(node)
}

func (f *fake) ports() Ports {
	return Ports{Self: f.identity, Host: f, Engine: f, Cluster: f, Now: func() time.Time { return f.now }}
}

// healthy is a cluster of three with nothing wrong.
func healthy() *fake {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	f := &fake{
		now: now, modules: []string{"ext4", "btrfs"}, tools: map[string]string{"mkfs.btrfs": "/sbin/mkfs.btrfs"}, free: 500,
		down: map[string]bool{}, full: map[string]bool{}, taken: map[int]string{},
		probes:   map[string]api.NodeProbe{},
		identity: Self{Node: "n1", DataDir: "/data", Ports: []int{7433}, Cert: Certificate{NotBefore: now.AddDate(0, 0, -30), Expiry: now.AddDate(0, 0, 60)}},
		status:   api.ClusterStatus{Node: "n1", Version: "v1", State: "healthy"},
		volumes:  []api.Volume{{ID: "id-pg", Name: "pg"}},
	}
	for _, n := range []string{"n1", "n2", "n3"} {
		f.status.Nodes = append(f.status.Nodes, api.Node{Name: n, Member: api.MemberVoter, StateURL: "https://" + n + ":7434", Status: api.NodeStatus{Online: true}})
		f.pools = append(f.pools, api.Pool{Name: "default", Node: n, Kind: "btrfs", State: api.PoolReady, Capacity: 100, Free: 50})
		f.probes[n] = api.NodeProbe{Node: n, Version: "v1", Time: now}
	}
	return f
}

func TestHealthy(t *testing.T) {
	f := healthy()
	list := Examine(Gather(t.Context(), f.ports()))
	for _, c := range list {
		if c.Level != OK || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
	if Worst(list) != OK || len(list) < 12 {
		t.Errorf("%d checks, the worst is %s", len(list), Worst(list))
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*fake)
		check  string
		level  string
		says   string
	}{
		{"no btrfs", func(f *fake) { f.modules = nil }, "kernel", Error, "has no btrfs"},
		{"no loop devices", func(f *fake) { f.noLoop = true }, "kernel", Error, "loop"},
		{"no mkfs", func(f *fake) { f.tools = nil }, "tools", Error, "mkfs.btrfs is missing"},
		{"ZFS without its tools", func(f *fake) { f.pools[0].Kind = "zfs" }, "tools", Error, "zfs command is missing"},
		{"little space", func(f *fake) { f.free = 90 }, "space", Warning, "90 B of 1000 B"},
		{"no space", func(f *fake) { f.free = 10 }, "space", Error, "10 B of 1000 B"},
		{"no cluster", func(f *fake) { f.identity.Node = "" }, "agent", Warning, "belongs to no cluster"},
		{"a port is taken", func(f *fake) { f.identity.Node = ""; f.taken[7433] = "in use" }, "ports", Error, "7433"},
		{"no Docker", func(f *fake) { f.down["docker"] = true }, "docker", Warning, "connection refused"},
		{"no agent", func(f *fake) { f.down["agent"] = true }, "agent", Error, "does not answer"},
		{"no plugin", func(f *fake) { f.down["plugin"] = true }, "plugin", Error, "connection refused"},
		{"no quorum", func(f *fake) { f.status.State = "no answer within 2s" }, "state store", Error, "no answer within 2s"},
		{"one member of three is silent", func(f *fake) { f.down["n3:7434"] = true }, "state store", Error, "2 of 3 members answer"},
		{"which member it is", func(f *fake) { f.down["n3:7434"] = true }, "state store", Error, "member on n3"},
		{"one member, many nodes", func(f *fake) {
			f.status.Nodes[1].Member, f.status.Nodes[2].Member = api.MemberNone, api.MemberNone
		}, "state store", Warning, "1 of 1"},
		{"a silent node", func(f *fake) { f.down["n2"] = true }, "nodes", Error, "n2 does not answer"},
		{"a node without a lease", func(f *fake) { f.status.Nodes[1].Status.Online = false }, "nodes", Warning, "n2 answers, but"},
		{"a clock that is off", func(f *fake) { f.probes["n2"] = api.NodeProbe{Time: f.now.Add(-2 * time.Second), Version: "v1"} }, "clocks", Warning, "n2 differs by -2s"},
		{"a clock that is far off", func(f *fake) { f.probes["n2"] = api.NodeProbe{Time: f.now.Add(time.Hour), Version: "v1"} }, "clocks", Error, "1h0m0s"},
		{"an older node", func(f *fake) { f.probes["n3"] = api.NodeProbe{Time: f.now, Version: "v0"} }, "versions", Warning, "v0 on n3; v1 on n1, n2"},
		{"a certificate that is over", func(f *fake) { f.identity.Cert.Expiry = f.now.Add(-time.Hour) }, "certificate", Error, "ended"},
		{"a certificate that is nearly over", func(f *fake) {
			f.identity.Cert = Certificate{NotBefore: f.now.AddDate(0, 0, -85), Expiry: f.now.AddDate(0, 0, 5)}
		}, "certificate", Error, "5 days"},
		{"a late renewal", func(f *fake) {
			f.identity.Cert = Certificate{NotBefore: f.now.AddDate(0, 0, -68), Expiry: f.now.AddDate(0, 0, 22)}
		}, "certificate", Warning, "late"},
		{"no right to read the certificate", func(f *fake) { f.identity.Cert = Certificate{Err: errDown} }, "certificate", Warning, "cannot be read"},
		{"a pool is gone", func(f *fake) { f.pools[1].State = api.PoolGone }, "pools", Error, "default on n2 is gone"},
		{"a pool is read-only", func(f *fake) { f.pools[0].State = api.PoolReadOnly }, "pools", Error, "read-only"},
		{"a pool is full", func(f *fake) { f.pools[0].State, f.pools[0].Reason = api.PoolFull, "at its watermark" }, "pools", Error, "(at its watermark) is full"},
		{"a pool has little left", func(f *fake) { f.pools[0].Free = 5 }, "pools", Warning, "5 B free"},
		{"a pool cannot grow", func(f *fake) { f.pools[0].Grows, f.pools[0].Held = true, "the host keeps 9 MiB free" }, "pools", Warning, "should grow and cannot: the host keeps 9 MiB free"},
		{"a full pool cannot grow", func(f *fake) { f.pools[0].State, f.pools[0].Held = api.PoolFull, "the host keeps 9 MiB free" }, "pools", Error, "cannot grow (the host keeps 9 MiB free) is full"},
		{"no pool here", func(f *fake) { f.pools = f.pools[1:] }, "pools", Warning, "no pool"},
		{"an empty twin", func(f *fake) { f.local = []Local{{Name: "pg", Dir: "/d/pg"}} }, "docker twins", Warning, "empty and unused"},
		{"a twin in use", func(f *fake) { f.local = []Local{{Name: "pg", Dir: "/d/pg", UsedBy: []string{"/db"}}} }, "docker twins", Error, "/db uses it"},
		{"a twin with data", func(f *fake) { f.local = []Local{{Name: "pg", Dir: "/d/pg"}}; f.full["/d/pg"] = true }, "docker twins", Error, "with files in it"},
		{"a twin nobody may look into", func(f *fake) { f.local = []Local{{Name: "pg", Dir: "/d/pg"}}; f.down["/d/pg"] = true }, "docker twins", Warning, "cannot be looked into"},
		{"volumes are unknown", func(f *fake) { f.down["volumes"] = true }, "docker twins", Warning, "unknown"},
		{"a mount of no volume", func(f *fake) { f.mounts = []string{"/data/mounts/id-pg/main", "/data/mounts/id-old/main"} }, "leftovers", Warning, "/data/mounts/id-old/main"},
		{"a loop device of a deleted file", func(f *fake) { f.loops = []string{"/data/pools/x.img"} }, "leftovers", Warning, "x.img"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := healthy()
			c.change(f)
			var seen []string
			for _, r := range Examine(Gather(t.Context(), f.ports())) {
				if r.Name != c.check {
					continue
				}
				seen = append(seen, r.Level+" "+r.Detail)
				if r.Level == c.level && strings.Contains(r.Detail, c.says) {
					if r.Level != OK && r.Mend == "" {
						t.Errorf("nothing is said about mending it: %+v", r)
					}
					return
				}
			}
			t.Errorf("%s does not say %s, %q; it says %q", c.check, c.level, c.says, seen)
		})
	}
}

func TestVolumesOfOthersAreNoTwins(t *testing.T) {
	f := healthy()
	f.local = []Local{{Name: "pgadmin", Dir: "/d/x"}, {Name: "data", Dir: "/d/y"}}
	if facts := Gather(t.Context(), f.ports()); len(facts.Twins) != 0 {
		t.Errorf("got %v", facts.Twins)
	}
}

func TestFixRemovesOnlyEmptyUnusedTwins(t *testing.T) {
	f := healthy()
	f.volumes = append(f.volumes, api.Volume{Name: "used"}, api.Volume{Name: "full"}, api.Volume{Name: "dark"}, api.Volume{Name: "filling"})
	f.local = []Local{
		{Name: "pg", Dir: "/d/pg"},
		{Name: "used", Dir: "/d/used", UsedBy: []string{"/web"}},
		{Name: "full", Dir: "/d/full"},
		{Name: "dark", Dir: "/d/dark"},
		{Name: "filling", Dir: "/d/filling"},
		{Name: "other", Dir: "/d/other"},
	}
	f.full["/d/full"], f.down["/d/dark"] = true, true
	facts := Gather(t.Context(), f.ports())
	f.full["/d/filling"] = true // between looking and mending
	did, err := Fix(t.Context(), f.ports(), facts)
	if err != nil || len(did) != 1 || !slices.Equal(f.removed, []string{"pg"}) {
		t.Errorf("removed %v, said %v, %v", f.removed, did, err)
	}
}

func TestNothingIsConcludedWithoutTheAgent(t *testing.T) {
	f := healthy()
	f.down["agent"] = true
	f.mounts = []string{"/data/mounts/id-pg/main"}
	f.local = []Local{{Name: "pg", Dir: "/d/pg"}}
	facts := Gather(t.Context(), f.ports())
	if did, err := Fix(t.Context(), f.ports(), facts); len(did) != 0 || err != nil || len(f.removed) != 0 {
		t.Errorf("it mended %v (%v) without knowing", did, err)
	}
	for _, c := range Examine(facts) {
		if c.Name == "leftovers" && (c.Level != Warning || strings.Contains(c.Detail, "id-pg")) {
			t.Errorf("%+v", c)
		}
	}
}
