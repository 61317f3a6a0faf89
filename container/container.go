// Package container is what Drover needs of a container engine: to see who
// uses a path, to hold and stop users, and to make the same container on
// another host. It knows no volumes' history and no cluster; package
// container/docker speaks to Docker and Podman.
package container

import (
	"context"
	"io"
	"time"
)

// Container is one container as the engine tells it.
type Container struct {
	ID      string
	Name    string
	Image   string // reference it was made from
	ImageID string // content address of its image
	State   State
	Error   string // the engine's word on why its last start failed
	Exit    int
	Started time.Time
	Labels  map[string]string
	Mounts  []Mount
	Restart string // restart policy: "no", "always", "unless-stopped", "on-failure"
}

// State is what a container is doing.
type State string

// The states.
const (
	Created    State = "created"
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting"
	Exited     State = "exited"
	Dead       State = "dead"
)

// Uses reports whether a container in this state may read or write its mounts.
func (s State) Uses() bool { return s == Running || s == Paused || s == Restarting }

// Mount is one mount of a container.
type Mount struct {
	Volume   string // the volume's name as the user wrote it, "" for a bind
	Driver   string
	Source   string // path on the host
	Target   string // path in the container
	ReadOnly bool
}

// Spec is all that is needed to make the same container on another engine of
// the same kind. Its content is the engine's own; only adapters look inside.
type Spec struct {
	Engine  string `json:"engine"` // "docker"
	Name    string `json:"name"`
	Image   string `json:"image"`   // reference
	ImageID string `json:"imageID"` // what the reference meant at the source
	Data    []byte `json:"data"`
}

// Engine is a container engine on this host. Methods are safe to repeat:
// stopping what is stopped and removing what is gone succeed. Errors are
// *api.Error; an engine that does not answer is Unavailable, and then nothing
// is known of its containers.
type Engine interface {
	// List gives all containers, running or not, that have a mount of the
	// volume driver named, or all with driver "". Error, Exit, Started and
	// Restart may be left out. It never waits for a container that is just
	// starting, unlike Inspect, so it may be asked from inside the volume
	// plugin's calls.
	List(ctx context.Context, driver string) ([]Container, error)
	// Inspect gives one by id or name.
	Inspect(ctx context.Context, id string) (Container, error)
	// Pause holds all its processes; Unpause lets them go on.
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	// Stop ends it, killing after timeout (0: the container's own setting),
	// and returns when the engine says that it has ended.
	Stop(ctx context.Context, id string, timeout time.Duration) error
	// Start starts it and returns when the engine says that it runs.
	Start(ctx context.Context, id string) error
	// SetRestart changes its restart policy.
	SetRestart(ctx context.Context, id, policy string) error
	// Exec runs a command inside and gives its output; a non-zero exit code
	// is an error that quotes the output's end.
	Exec(ctx context.Context, id string, command []string) (output []byte, err error)
	// Export describes a container so that Import makes the same elsewhere.
	Export(ctx context.Context, id string) (Spec, error)
	// CheckImport says whether Import would work here: image present or
	// pullable, name and networks free. It changes nothing but the image
	// store, where the image is pulled when it is missing.
	CheckImport(ctx context.Context, spec Spec) error
	// Import makes the container, stopped. One of that name made by an earlier
	// Import of the same spec is returned; any other of that name is Exists.
	Import(ctx context.Context, spec Spec) (id string, err error)
	// Remove removes a stopped container, never its volumes.
	Remove(ctx context.Context, id string) error
	// Watch calls changed with the id of each container whose state changes,
	// and with "" when changes may have been missed, until ctx ends. It
	// reconnects by itself.
	Watch(ctx context.Context, changed func(id string)) error
	// Ping says whether the engine answers, with its name and version.
	Ping(ctx context.Context) (string, error)
}

// Sessions is the capability of an engine to keep a command open, found by
// type assertion.
type Sessions interface {
	// Session begins a command inside a container. What is written is its
	// standard input, what is read its output and errors; Close ends its
	// input and lets go of it, which ends programs that read commands.
	Session(ctx context.Context, id string, command []string) (io.ReadWriteCloser, error)
}

// Once is a command that runs to its end in a container of its own.
type Once struct {
	Name    string // of the container
	Image   string
	Command []string // instead of the image's entry point
	Source  string   // directory of the host
	Target  string   // where the container has it, for reading and writing
}

// Ran is how it ended.
type Ran struct {
	Exit   int
	Output []byte // the end of what it said
}

// Runs is the capability to run a command once, found by type assertion.
type Runs interface {
	// Run makes a container without a network, waits until its command has ended,
	// and removes it, also when ctx ends first. An image that is not here is
	// pulled. A container of that name that is left from a crash is removed before.
	Run(ctx context.Context, o Once) (Ran, error)
}
