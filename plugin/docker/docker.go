// Package docker speaks Docker's volume plugin protocol (version 1) over HTTP:
// requests become calls of Volumes, errors become the text that Docker shows.
// It must not know how volumes are kept, found or moved.
//
// The protocol: https://docs.docker.com/engine/extend/plugins_volume/
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/drover-data/drover/api"
)

// Volume is what Docker is told of a volume.
type Volume struct {
	Name       string
	Mountpoint string // "" while it is not mounted here
	Created    time.Time
	Status     map[string]any // shown by docker volume inspect
}

// Volumes is what the plugin serves. Names are references as users type them.
//
// Docker relies on Get, List and Path to be quick and, for a name it should
// know, never to fail: when Get fails and no driver is named, Docker makes an
// empty local volume of that name. Mount and Unmount are counted by id; the
// same id again, after a crash of the engine for instance, changes nothing.
type Volumes interface {
	Create(ctx context.Context, r CreateRequest) error
	// Get gives one; NotFound only when it is known not to exist.
	Get(ctx context.Context, name string) (Volume, error)
	List(ctx context.Context) ([]Volume, error)
	// Path gives where it is mounted here, "" when it is not.
	Path(ctx context.Context, name string) (string, error)
	// Mount makes it usable and gives the path. Docker gives up after 120 s
	// and Podman after 5 s, without an Unmount: ctx ends when they hang up.
	Mount(ctx context.Context, name, id string) (path string, err error)
	Unmount(ctx context.Context, name, id string) error
	Remove(ctx context.Context, name string) error
}

const (
	maxBody     = 1 << 20
	contentType = "application/vnd.docker.plugins.v1.2+json"
)

// Plugin collects the protocols that one socket serves: Docker asks once what
// a plugin implements.
type Plugin struct {
	mux        *http.ServeMux
	implements []string
}

// New makes a plugin that serves volumes.
func New(v Volumes) *Plugin {
	p := &Plugin{mux: http.NewServeMux()}
	p.Handle("/Plugin.Activate", func(context.Context, []byte) (any, error) {
		return map[string]any{"Implements": p.implements}, nil
	})
	p.Implement("VolumeDriver", volumeMethods(v))
	return p
}

// Method answers one call: body is the request's JSON, the answer becomes the
// response's.
type Method func(ctx context.Context, body []byte) (any, error)

// Implement adds a protocol, "VolumeDriver" for instance, before the plugin
// serves.
func (p *Plugin) Implement(protocol string, methods map[string]Method) {
	p.implements = append(p.implements, protocol)
	for name, m := range methods {
		p.Handle("/"+protocol+"."+name, m)
	}
}

// Handle adds one path.
func (p *Plugin) Handle(path string, m Method) {
	p.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { serve(w, r, m) })
}

// ServeHTTP serves the protocol.
func (p *Plugin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := p.mux.Handler(r); pattern == "" {
		answer(w, http.StatusNotFound, errorBody(&api.Error{Kind: api.Unsupported, Op: "call", Object: r.URL.Path, Reason: "this plugin has no such method"}))
		return
	}
	p.mux.ServeHTTP(w, r)
}

func serve(w http.ResponseWriter, r *http.Request, m Method) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answer(w, http.StatusMethodNotAllowed, errorBody(&api.Error{Kind: api.Invalid, Op: "call", Object: r.URL.Path, Reason: "the method is " + r.Method + " instead of POST"}))
		return
	}
	// Browsers cannot send this type to a socket, but a proxy in front could.
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if _, _, err := mime.ParseMediaType(ct); err != nil {
			answer(w, http.StatusUnsupportedMediaType, errorBody(&api.Error{Kind: api.Invalid, Op: "call", Object: r.URL.Path, Reason: "malformed content type"}))
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		status := http.StatusBadRequest
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			status = http.StatusRequestEntityTooLarge
		}
		answer(w, status, errorBody(&api.Error{Kind: api.Invalid, Op: "call", Object: r.URL.Path, Reason: fmt.Sprintf("the request cannot be read or has more than %d bytes", maxBody), Err: err}))
		return
	}
	out, err := m(r.Context(), body)
	if err != nil {
		// Docker shows Err of a failed call; it wants an error status with it.
		answer(w, http.StatusInternalServerError, errorBody(err))
		return
	}
	answer(w, http.StatusOK, out)
}

// errorBody is where errors become what Docker shows, once. Docker puts
// "VolumeDriver.Mount: " or the like before it.
func errorBody(err error) any { return map[string]string{"Err": err.Error()} }

func answer(w http.ResponseWriter, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte(`{"Err":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n'))
}

// named is what most requests hold.
type named struct {
	Name string
	ID   string
	Opts map[string]string
}

// readNamed reads a request. Fields it does not know are a newer Docker's and
// no error.
func readNamed(op string, body []byte, needName bool) (named, error) {
	var q named
	if len(body) > 0 {
		if err := json.Unmarshal(body, &q); err != nil {
			return q, &api.Error{Kind: api.Invalid, Op: op, Reason: "the request is not valid JSON", Err: err}
		}
	}
	if needName && q.Name == "" {
		return q, &api.Error{Kind: api.Invalid, Op: op, Reason: "the request has no name"}
	}
	return q, nil
}

// wire is a volume in an answer.
type wire struct {
	Name       string
	Mountpoint string         `json:",omitempty"`
	CreatedAt  string         `json:",omitempty"`
	Status     map[string]any `json:",omitempty"`
}

func toWire(v Volume) wire {
	out := wire{Name: v.Name, Mountpoint: v.Mountpoint, Status: v.Status}
	if !v.Created.IsZero() {
		out.CreatedAt = v.Created.UTC().Format(time.RFC3339)
	}
	return out
}

func volumeMethods(v Volumes) map[string]Method {
	// withName wraps the methods that need one.
	withName := func(op string, f func(ctx context.Context, q named) (any, error)) Method {
		return func(ctx context.Context, body []byte) (any, error) {
			q, err := readNamed(op, body, true)
			if err != nil {
				return nil, err
			}
			return f(ctx, q)
		}
	}
	empty := map[string]string{}
	return map[string]Method{
		"Capabilities": func(context.Context, []byte) (any, error) {
			return map[string]any{"Capabilities": map[string]string{"Scope": "global"}}, nil
		},
		"Create": withName("create volume", func(ctx context.Context, q named) (any, error) {
			r, err := ParseCreate(q.Name, q.Opts)
			if err != nil {
				return nil, err
			}
			return empty, v.Create(ctx, r)
		}),
		"Get": withName("look for volume", func(ctx context.Context, q named) (any, error) {
			got, err := v.Get(ctx, q.Name)
			return map[string]wire{"Volume": toWire(got)}, err
		}),
		"List": func(ctx context.Context, _ []byte) (any, error) {
			all, err := v.List(ctx)
			out := make([]wire, 0, len(all))
			for _, one := range all {
				out = append(out, toWire(one))
			}
			return map[string][]wire{"Volumes": out}, err
		},
		"Path": withName("look for volume", func(ctx context.Context, q named) (any, error) {
			path, err := v.Path(ctx, q.Name)
			return map[string]string{"Mountpoint": path}, err
		}),
		"Mount": withName("mount volume", func(ctx context.Context, q named) (any, error) {
			path, err := v.Mount(ctx, q.Name, q.ID)
			return map[string]string{"Mountpoint": path}, err
		}),
		"Unmount": withName("unmount volume", func(ctx context.Context, q named) (any, error) {
			return empty, v.Unmount(ctx, q.Name, q.ID)
		}),
		"Remove": withName("remove volume", func(ctx context.Context, q named) (any, error) {
			return empty, v.Remove(ctx, q.Name)
		}),
	}
}
