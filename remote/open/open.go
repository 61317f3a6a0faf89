// Package open finds the store that a remote's address means. It is the one
// place that knows them all.
package open

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
	"github.com/drover-data/drover/remote/layout"
	"github.com/drover-data/drover/remote/registry"
	"github.com/drover-data/drover/remote/s3"
)

// Login is a user's name and password, or an access key with its secret. The
// zero value leaves it to the usual places: Docker's config, AWS's variables.
type Login struct{ User, Secret, Session string }

// Options are what an address does not say.
type Options struct {
	Login     Login
	Transport http.RoundTripper // nil: one like http.DefaultTransport
}

const op = "open remote"

func invalid(address, reason, next string) error {
	return &api.Error{Kind: api.Invalid, Op: op, Object: Shown(address), Reason: reason, Next: next}
}

const forms = "give registry.example.com/team/pg, s3://bucket/prefix, file:///path or hub://host/namespace/name"

// Open gives the store of an address; nothing is asked of it yet:
//
//	file:///path                                    a directory
//	s3://bucket/prefix[?endpoint=URL&region=NAME]   a bucket
//	hub://host/namespace/name                       a repository of a hub
//	host[:port]/path                                a repository of a registry
func Open(address string, o Options) (remote.Store, error) {
	if err := clean(address); err != nil {
		return nil, err
	}
	scheme, rest, found := strings.Cut(address, "://")
	if !found {
		return openRegistry(address, address, false, o)
	}
	switch scheme {
	case "file":
		return openDirectory(address)
	case "s3":
		return openBucket(address, o)
	case "hub":
		return openRegistry(address, rest, true, o)
	case "http", "https", "oci", "docker":
		return nil, invalid(address, "a registry is given without "+scheme+"://", "give "+rest)
	}
	return nil, invalid(address, "nothing is known of "+scheme+"://", forms)
}

// clean refuses what no address has. Secrets would be seen wherever the address
// is: they come by other ways.
func clean(address string) error {
	if address == "" {
		return invalid(address, "the address is empty", forms)
	}
	for _, r := range address {
		if r <= ' ' || r == 0x7f {
			return invalid(address, "the address has a space or a control character", forms)
		}
	}
	if Shown(address) != address {
		return invalid(address, "a login or secret does not belong into an address", "docker login or the AWS variables, on the volume's node, keep it")
	}
	return nil
}

// Shown is an address as it may be printed: a login in it is left out.
func Shown(address string) string {
	scheme, rest, found := strings.Cut(address, "://")
	if !found {
		scheme, rest = "", address
	}
	host, tail := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host, tail = rest[:i], rest[i:]
	}
	if i := strings.LastIndex(host, "@"); i >= 0 {
		host = host[i+1:]
	}
	if before, query, ok := strings.Cut(tail, "?"); ok {
		tail = before + "?" + shownQuery(query)
	}
	if found {
		return scheme + "://" + host + tail
	}
	return host + tail
}

// shownQuery leaves the values of what is not known out, and logins of URLs.
func shownQuery(query string) string {
	var out []string
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		switch plain, err := url.QueryUnescape(value); {
		case name == "region":
		case name == "endpoint" && err == nil && !strings.ContainsAny(plain, "@?"):
		default:
			part = name + "=…"
		}
		out = append(out, part)
	}
	return strings.Join(out, "&")
}

func id() string { return strings.ToLower(rand.Text()) }

func openDirectory(address string) (remote.Store, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host != "" || u.RawQuery != "" || u.Fragment != "" || !path.IsAbs(u.Path) {
		return nil, invalid(address, "not the absolute path of a directory on the node", "give file:///path, with three slashes")
	}
	dir := path.Clean(u.Path)
	if dir == "/" {
		return nil, invalid(address, "the root directory is not for commits", "give a directory of their own")
	}
	return layout.Open(dir, time.Now, id), nil
}

func openBucket(address string, o Options) (remote.Store, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Port() != "" || u.Fragment != "" {
		return nil, invalid(address, "not a bucket", "give s3://bucket/prefix, and for others than AWS ?endpoint=https://…")
	}
	for part := range strings.SplitSeq(strings.Trim(u.Path, "/"), "/") {
		if part == "." || part == ".." || (part == "" && strings.Trim(u.Path, "/") != "") {
			return nil, invalid(address, "the prefix has an empty part, or one of dots", "give s3://bucket/prefix")
		}
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, invalid(address, "its query cannot be read", "")
	}
	for name := range q {
		if name != "endpoint" && name != "region" {
			return nil, invalid(address, "nothing is known of "+name+"=", "there are endpoint= and region=")
		}
	}
	return s3.Open(s3.Options{
		Bucket: u.Host, Prefix: u.Path, Endpoint: q.Get("endpoint"), Region: q.Get("region"),
		Access: o.Login.User, Secret: o.Login.Secret, Session: o.Login.Session, Transport: o.Transport, Now: time.Now, ID: id,
	})
}

func openRegistry(address, reference string, hub bool, o Options) (remote.Store, error) {
	host, repository, _ := strings.Cut(reference, "/")
	if strings.ContainsAny(reference, "?#") || repository == "" {
		return nil, invalid(address, "not a repository of a registry", forms)
	}
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		// Docker would take it for a name on Docker Hub; a typing error must not go there.
		return nil, invalid(address, host+" is not a host's whole name", "for Docker Hub give docker.io/"+reference)
	}
	if hub && strings.Count(repository, "/") != 1 {
		return nil, invalid(address, "a repository of a hub is in a namespace", "give hub://host/namespace/name")
	}
	return registry.Open(registry.Options{Reference: reference, Hub: hub, Username: o.Login.User, Password: o.Login.Secret, Transport: o.Transport})
}
