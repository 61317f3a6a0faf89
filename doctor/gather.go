package doctor

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/drover-data/drover/api"
)

// Host is the machine.
type Host interface {
	Kernel() (release string, fileSystems []string, loop bool)
	Tool(name string) string // path, "" when it is missing
	Space(dir string) (free, size int64, err error)
	// Taken says who has a TCP port, "" when nobody has.
	Taken(port int) string
	Reach(ctx context.Context, address string) error
	Plugin(ctx context.Context) error
	Empty(dir string) (bool, error)
	// Mounts gives mount points below a directory, Loops the deleted files
	// below it that are still loop devices.
	Mounts(dir string) ([]string, error)
	Loops(dir string) ([]string, error)
}

// Local is a volume of Docker's own driver.
type Local struct {
	Name, Dir string
	UsedBy    []string
}

// Engine is the container engine.
type Engine interface {
	Ping(ctx context.Context) (string, error)
	Local(ctx context.Context) ([]Local, error)
	RemoveLocal(ctx context.Context, name string) error
}

// Cluster is what the agent can tell.
type Cluster interface {
	Status(ctx context.Context) (api.ClusterStatus, error)
	Pools(ctx context.Context) ([]api.Pool, error)
	// Volumes are all, those that wait to be purged too.
	Volumes(ctx context.Context) ([]api.Volume, error)
	Probe(ctx context.Context, node string) (api.NodeProbe, error)
}

// Self is what this host knows of itself without asking anybody.
type Self struct {
	Node     string // "" belongs to no cluster
	DataDir  string
	External bool
	Ports    []int // a node needs
	Err      error // why Node is unknown
	Cert     Certificate
}

// Ports are the doctor's instruments.
type Ports struct {
	Self    Self
	Host    Host
	Engine  Engine
	Cluster Cluster
	Now     func() time.Time
}

// patience bounds each question.
const patience = 5 * time.Second

// Gather looks at everything. What cannot be looked at becomes a fact too.
func Gather(ctx context.Context, p Ports) Facts {
	f := Facts{
		Now: p.Now(), Node: p.Self.Node, DataDir: p.Self.DataDir, External: p.Self.External, Config: p.Self.Err, Cert: p.Self.Cert,
		Tools: map[string]string{}, PortsTaken: map[int]string{}, Probes: map[string]Probe{}, State: map[string]error{},
	}
	f.Kernel, f.FileSystems, f.Loop = p.Host.Kernel()
	for _, t := range []string{"mkfs.btrfs", "zfs"} {
		f.Tools[t] = p.Host.Tool(t)
	}
	f.DataFree, f.DataSize, _ = p.Host.Space(f.DataDir)
	if f.Node == "" {
		for _, port := range p.Self.Ports {
			if who := p.Host.Taken(port); who != "" {
				f.PortsTaken[port] = who
			}
		}
	}
	within(ctx, func(ctx context.Context) { f.Docker, f.DockerErr = p.Engine.Ping(ctx) })
	if f.Node != "" {
		within(ctx, func(ctx context.Context) { f.PluginErr = p.Host.Plugin(ctx) })
		cluster(ctx, p, &f)
	}
	within(ctx, func(ctx context.Context) { f.Twins, f.TwinErr = lookForTwins(ctx, p, f) })
	f.Left, f.LeftErr = lookForLeftovers(p.Host, f)
	return f
}

func within(ctx context.Context, do func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	do(ctx)
}

// cluster asks the agent, and through it the other nodes.
func cluster(ctx context.Context, p Ports, f *Facts) {
	within(ctx, func(ctx context.Context) { f.Status, f.AgentErr = p.Cluster.Status(ctx) })
	if f.AgentErr != nil {
		f.VolumesErr = f.AgentErr
		return
	}
	within(ctx, func(ctx context.Context) { f.Volumes, f.VolumesErr = p.Cluster.Volumes(ctx) })
	within(ctx, func(ctx context.Context) {
		var err error
		if f.Pools, err = p.Cluster.Pools(ctx); err != nil {
			f.AgentErr = err
		}
	})
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, n := range f.Status.Nodes {
		if n.Name != f.Node {
			all.Go(func() {
				within(ctx, func(ctx context.Context) {
					probe := probe(ctx, p, n.Name)
					mu.Lock()
					defer mu.Unlock()
					f.Probes[n.Name] = probe
				})
			})
		}
		if n.Member == api.MemberVoter && !f.External {
			all.Go(func() {
				within(ctx, func(ctx context.Context) {
					err := p.Host.Reach(ctx, strings.TrimPrefix(n.StateURL, "https://"))
					mu.Lock()
					defer mu.Unlock()
					f.State[n.Name] = err
				})
			})
		}
	}
	all.Wait()
}

// probe compares a clock: the other's time was read somewhere between question
// and answer.
func probe(ctx context.Context, p Ports, node string) Probe {
	asked := p.Now()
	answer, err := p.Cluster.Probe(ctx, node)
	if err != nil {
		return Probe{Err: err}
	}
	half := p.Now().Sub(asked) / 2
	return Probe{Skew: answer.Time.Sub(asked.Add(half)), Within: half, Version: answer.Version}
}

func lookForTwins(ctx context.Context, p Ports, f Facts) ([]Twin, error) {
	if f.Node == "" || f.DockerErr != nil {
		return nil, nil
	}
	if f.VolumesErr != nil {
		return nil, f.VolumesErr
	}
	ours := map[string]bool{}
	for _, v := range f.Volumes {
		ours[v.Name] = true
	}
	list, err := p.Engine.Local(ctx)
	if err != nil {
		return nil, err
	}
	var out []Twin
	for _, l := range list {
		name, _, _ := strings.Cut(l.Name, "@") // references of ours are pg@branch, and never a twin's name otherwise
		if !ours[name] {
			continue
		}
		t := Twin{Name: l.Name, Dir: l.Dir, UsedBy: l.UsedBy}
		t.Empty, t.Err = p.Host.Empty(l.Dir)
		out = append(out, t)
	}
	return out, nil
}

// lookForLeftovers finds mounts of volumes that are no more, and loop devices
// of files that are no more.
func lookForLeftovers(h Host, f Facts) ([]Leftover, error) {
	var out []Leftover
	loops, err := h.Loops(f.DataDir)
	if err != nil {
		return nil, err
	}
	for _, l := range loops {
		out = append(out, Leftover{"a loop device holds the deleted file " + l, "losetup -d the device that losetup -a shows for it, after unmounting it"})
	}
	if f.Node == "" {
		return out, nil
	}
	if f.VolumesErr != nil {
		return nil, f.VolumesErr
	}
	known := map[string]bool{}
	for _, v := range f.Volumes {
		known[v.ID] = true
	}
	dir := filepath.Join(f.DataDir, "mounts")
	mounts, err := h.Mounts(dir)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		rel, err := filepath.Rel(dir, m)
		if err != nil {
			return nil, err
		}
		if id, _, _ := strings.Cut(rel, string(filepath.Separator)); !known[id] {
			out = append(out, Leftover{m + " is mounted, and the cluster has no such volume", "if nothing uses it (fuser -m " + m + "), umount it"})
		}
	}
	return out, nil
}

// Fix mends what can be mended without asking anybody, and says what it did:
// empty, unused twins are removed. Each is looked at again just before.
func Fix(ctx context.Context, p Ports, f Facts) (did []string, err error) {
	for _, t := range f.Twins {
		if t.Err != nil || !t.Empty || len(t.UsedBy) > 0 {
			continue
		}
		if still, err := p.Host.Empty(t.Dir); err != nil || !still {
			continue
		}
		if err := p.Engine.RemoveLocal(ctx, t.Name); err != nil {
			return did, err
		}
		did = append(did, "removed Docker's own empty volume "+t.Name)
	}
	return did, nil
}
