package node

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/exchange"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/layout"
)

// places opens remotes with what this host knows: its logins and its keys.
type places struct{ dataDir string }

// Open implements agent.Remotes.
func (p places) Open(_ context.Context, text string) (remote.Store, error) {
	const op = "use remote"
	u, err := url.Parse(text)
	if err != nil || strings.ContainsAny(text, " \t\n") {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "it is not a URL", Next: "give registry.example.com/team/pg, s3://bucket/prefix, file:///path or hub://host/team/pg"}
	}
	if u.User != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: u.Redacted(), Reason: "a URL with a password would be shown to everybody who may look at the volume", Next: "log in with docker login, or set the AWS variables, on the volume's node"}
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") || filepath.Clean(u.Path) == "/" {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Object: text, Reason: "it does not name a directory", Next: "write file:///path/of/a/directory"}
		}
		return layout.Open(filepath.Clean(u.Path), time.Now, NewID), nil
	}
	return nil, &api.Error{Kind: api.Unsupported, Op: op, Object: text, Reason: "it is of no kind that is known", Next: "give registry.example.com/team/pg, s3://bucket/prefix, file:///path or hub://host/team/pg"}
}

// Key implements agent.Remotes: keys are files of this node, named by their ids.
func (p places) Key(id string) (exchange.Key, error) {
	const op = "use key"
	if id == "" {
		return nil, nil
	}
	if strings.ContainsAny(id, "/.") {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Object: id, Reason: "not the id of a key"}
	}
	secret, err := os.ReadFile(filepath.Join(p.dataDir, "remote-keys", id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Kind: api.NotFound, Op: op, Object: id, Reason: "this node does not have it", Next: "drover remote key add, on the volume's node"}
	}
	if err != nil {
		return nil, &api.Error{Kind: api.Unavailable, Op: op, Object: id, Err: err}
	}
	return exchange.NewKey(secret)
}
