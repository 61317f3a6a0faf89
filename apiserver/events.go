package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/api/client"
	"github.com/drover-data/drover/auth"
)

// StreamPath is where events are streamed.
const StreamPath = "/v1/events/stream"

func (s *Server) eventRoutes() {
	add(s, route{"list-events", http.MethodGet, "/v1/events", "Events of a node after a given one", auth.Look, false, true}, s.listEvents)
	schema := s.api.OpenAPI().Components.Schemas
	huma.Register(s.api, huma.Operation{
		OperationID: "stream-events", Method: http.MethodGet, Path: StreamPath,
		Summary: "Events of a node as server-sent events: those after a given one, then each as it happens",
		Responses: map[string]*huma.Response{"200": {
			Description: "A stream of server-sent events (text/event-stream); the id of each is for Last-Event-ID, its data an Event in JSON",
			Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{
				Type: huma.TypeArray, Items: schema.Schema(reflect.TypeFor[api.Event](), true, "Event"),
			}}},
		}},
	}, s.streamEvents)
}

// listEvents gives the events that there are.
func (s *Server) listEvents(ctx context.Context, in *struct {
	After string `query:"after" doc:"id of the last event that is known"`
	Node  string `query:"node" doc:"empty is the node that is asked"`
},
) ([]api.Event, error) {
	if in.Node != "" && in.Node != s.cfg.Node {
		var list []api.Event
		err := s.call(ctx, in.Node, http.MethodGet, "/v1/events?after="+url.QueryEscape(in.After), nil, &list)
		return list, err
	}
	list, _ := s.cfg.Events.After(in.After)
	if list == nil {
		list = []api.Event{}
	}
	return list, nil
}

// streamIn says where a stream of events begins.
type streamIn struct {
	After string `query:"after" doc:"id of the last event that is known"`
	Last  string `header:"Last-Event-ID" doc:"the same, as clients of server-sent events say it when they come back"`
	Node  string `query:"node" doc:"empty is the node that is asked"`
}

func (in *streamIn) after() string {
	if in.Last != "" {
		return in.Last
	}
	return in.After
}

// beat is how often a stream says that it is alive, so that a connection that
// is cut without a word is noticed on both sides.
const beat = 15 * time.Second

func (s *Server) streamEvents(ctx context.Context, in *streamIn) (*huma.StreamResponse, error) {
	if err := auth.Allow(identityOf(ctx), auth.Look); err != nil {
		return nil, statusOf(err)
	}
	if in.Node != "" && in.Node != s.cfg.Node {
		far, err := s.farEvents(ctx, in)
		if err != nil {
			return nil, statusOf(err)
		}
		return &huma.StreamResponse{Body: func(h huma.Context) { far(newStream(h)) }}, nil
	}
	return &huma.StreamResponse{Body: func(h huma.Context) { s.ownEvents(h.Context(), newStream(h), in.after()) }}, nil
}

// ownEvents streams this node's events until the client goes.
func (s *Server) ownEvents(ctx context.Context, out *stream, after string) {
	alive := time.NewTicker(beat)
	defer alive.Stop()
	for {
		list, more := s.cfg.Events.After(after)
		for _, e := range list {
			after = e.ID
			if !out.event(e) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-more:
		case <-alive.C:
			if !out.comment("alive") {
				return
			}
		}
	}
}

// farEvents streams another node's events. That the node does not answer is
// said before the stream begins.
func (s *Server) farEvents(ctx context.Context, in *streamIn) (func(*stream), error) {
	transport, err := s.cfg.Forward(in.Node)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	if id := identityOf(ctx); id.Kind == auth.UserKind || id.Kind == auth.LocalKind {
		header.Set(BehalfHeader, behalf(auth.Identity{Kind: id.Kind, Name: url.QueryEscape(id.Name), Role: id.Role}))
	}
	from, err := client.New("https://node", transport, header).Stream(ctx, StreamPath, in.after())
	if err != nil {
		return nil, unanswered(in.Node, err)
	}
	return func(out *stream) {
		defer from.Close()
		for {
			m, err := from.Next()
			if err != nil || !out.message(m) {
				return
			}
		}
	}, nil
}

// stream writes server-sent events.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func newStream(h huma.Context) *stream {
	h.SetHeader("Content-Type", "text/event-stream")
	h.SetHeader("Cache-Control", "no-store")
	w, ok := h.BodyWriter().(http.ResponseWriter)
	if !ok {
		return &stream{}
	}
	out := &stream{w, http.NewResponseController(w)}
	out.comment("events of this node follow") // the client knows that it is through
	return out
}

func (s *stream) event(e api.Event) bool {
	text, err := json.Marshal(e)
	return err == nil && s.message(client.Message{ID: e.ID, Data: text})
}

func (s *stream) message(m client.Message) bool {
	if m.Comment {
		return s.comment("alive")
	}
	return s.write(fmt.Sprintf("id: %s\ndata: %s\n\n", m.ID, strings.ReplaceAll(string(m.Data), "\n", "\ndata: ")))
}

func (s *stream) comment(text string) bool { return s.write(": " + text + "\n\n") }

// write sends a piece at once; a client that does not take it is given up.
func (s *stream) write(text string) bool {
	if s.w == nil {
		return false
	}
	const patience = 10 * time.Second
	_ = s.control.SetWriteDeadline(time.Now().Add(patience))
	if _, err := s.w.Write([]byte(text)); err != nil {
		return false
	}
	return s.control.Flush() == nil
}
