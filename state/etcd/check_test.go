package etcd_test

import (
	"context"
	"net"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state/etcd"
)

// aged is a server that says of itself that it is an etcd of some version.
type aged struct {
	pb.UnimplementedMaintenanceServer
	version string
}

func (a aged) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Version: a.version, Header: &pb.ResponseHeader{}}, nil
}

// An etcd that is too old is refused with its version.
func TestTooOld(t *testing.T) {
	w := newWorld(t)
	server := w.identity("server", true)
	for _, version := range []string{"3.3.27", "2.3.8", "nonsense", ""} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		config := server.ServerTLS(nil, nil, "h2")
		s := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
		pb.RegisterMaintenanceServer(s, aged{version: version})
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		client := w.identity("n1", true).ClientTLS(nil, nil)
		_, err = etcd.Check(t.Context(), etcd.ClientConfig{Endpoints: []string{"https://" + l.Addr().String()}, TLS: client, External: true}, true)
		if !api.Is(err, api.Unsupported) || !strings.Contains(err.Error(), "etcd "+version) || !strings.Contains(err.Error(), etcd.Oldest) {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

// The answers of a store that is not meant are refused, also when it is a
// perfectly good one: it may be of a former incarnation.
func TestForeignStore(t *testing.T) {
	w := newWorld(t)
	id := w.identity("n1", true)
	cfg := w.config("n1", id)
	w.start(cfg)
	kv := w.open(id, cfg.ClientPort)
	if _, _, err := kv.Get(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	store := kv.StoreID()
	if store == 0 {
		t.Fatal("the store's id is not known")
	}
	kv.Pin(store)
	if _, _, err := kv.Get(t.Context(), "x"); err != nil {
		t.Errorf("the store that is meant: %v", err)
	}
	kv.Pin(store + 1)
	if _, _, err := kv.Get(t.Context(), "x"); !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "another state store") {
		t.Errorf("another store: %v", err)
	}
	if _, err := kv.Members().List(t.Context()); !api.Is(err, api.Unavailable) {
		t.Errorf("another store's members: %v", err)
	}
	if _, _, err := kv.Lease(t.Context(), 10e9); !api.Is(err, api.Unavailable) {
		t.Errorf("another store's lease: %v", err)
	}
}
