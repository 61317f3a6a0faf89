// Package doctor says what is wrong with a host and its cluster and how to
// mend it. Facts are gathered first, through small ports; what they mean is
// decided from them alone, so that every check can be tested without a host.
// It must not know how the agent or the state store work inside.
package doctor

import (
	"time"

	"github.com/drover-data/drover/api"
)

// Facts are what was found, with the errors of what could not be found.
type Facts struct {
	Now time.Time

	// Node is empty on a host that belongs to no cluster.
	Node     string
	DataDir  string
	External bool // the state store is somebody else's etcd
	Config   error

	Kernel      string
	FileSystems []string // that the kernel knows
	Loop        bool     // loop devices can be made
	Tools       map[string]string
	DataFree    int64 // bytes where the data directory is, or will be
	DataSize    int64
	PortsTaken  map[int]string // ports that a new node needs and that somebody has

	Docker    string // name and version
	DockerErr error
	PluginErr error // of a call of the plugin's socket

	AgentErr   error
	Status     api.ClusterStatus
	Pools      []api.Pool
	Volumes    []api.Volume // nil when VolumesErr is set
	VolumesErr error
	Probes     map[string]Probe // by node, this one left out
	State      map[string]error // by node: does its member of the state store answer

	Cert    Certificate
	Twins   []Twin
	TwinErr error
	Left    []Leftover
	LeftErr error
}

// Probe is what another node's agent answered.
type Probe struct {
	Err     error
	Skew    time.Duration // its clock minus this one's
	Within  time.Duration // the answer's own uncertainty
	Version string
}

// Certificate is the node's.
type Certificate struct {
	Err               error
	NotBefore, Expiry time.Time
}

// Twin is a volume of Docker's own driver with the name of one of the cluster.
type Twin struct {
	Name   string
	Dir    string
	UsedBy []string
	Empty  bool
	Err    error // why it could not be looked into
}

// Leftover is something that nobody needs any more.
type Leftover struct {
	What string
	Mend string
}

// Levels of a check.
const (
	OK      = "ok"
	Warning = "warning"
	Error   = "error"
)

// Worst is the worst level of a list.
func Worst(list []api.Check) string {
	rank := map[string]int{OK: 0, Warning: 1, Error: 2}
	worst := OK
	for _, c := range list {
		if rank[c.Level] > rank[worst] {
			worst = c.Level
		}
	}
	return worst
}
