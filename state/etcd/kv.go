package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/state"
)

// ClientConfig says how to reach the store.
type ClientConfig struct {
	// Endpoints are https URLs of members; others are learned from the member list.
	Endpoints []string
	// TLS proves who we are. Required: nothing is ever sent in clear.
	TLS *tls.Config
	// Timeout bounds one operation. Default 5 s.
	Timeout time.Duration
	// Sync is how often endpoints are refreshed from the member list. Default
	// 30 s; negative: never, for an external cluster behind fixed addresses.
	Sync time.Duration
	// Store is the id of the store that is meant; 0 takes whichever answers.
	// What another store says is refused: after a recovery, members of the
	// former incarnation may still answer at known addresses.
	Store uint64
	// Prefix is put before every key, so that several Drover clusters and
	// others can share an etcd that is not Drover's own.
	Prefix string
	// External: rights are given by whoever runs that etcd; errors say so.
	External bool
}

// Validate reports all that is wrong.
func (c ClientConfig) Validate() error {
	var wrong []string
	if len(c.Endpoints) == 0 {
		wrong = append(wrong, "no endpoints")
	}
	for _, e := range c.Endpoints {
		if !strings.HasPrefix(e, "https://") {
			wrong = append(wrong, e+" is not an https URL")
		}
	}
	if c.TLS == nil {
		wrong = append(wrong, "no TLS identity")
	}
	if wrong != nil {
		return &api.Error{Kind: api.Invalid, Op: "reach the state store", Reason: strings.Join(wrong, "; ")}
	}
	return nil
}

// KV is the port on etcd.
type KV struct {
	client  *clientv3.Client
	timeout time.Duration
	prefix  string        // of all keys, said in errors only
	foreign bool          // the store is run by others
	refused chan struct{} // closed when a member refused our certificate
	once    *sync.Once
	store   atomic.Uint64 // that is meant; 0: any
	seen    atomic.Uint64 // that answered last
}

// StoreID is the id of the store that answered last, 0 before any has.
func (kv *KV) StoreID() uint64 { return kv.seen.Load() }

// Pin refuses from now on what another store says.
func (kv *KV) Pin(store uint64) { kv.store.Store(store) }

// check refuses answers of a store that is not meant.
func (kv *KV) check(h *pb.ResponseHeader) error {
	kv.seen.Store(h.GetClusterId())
	if want := kv.store.Load(); want != 0 && h.GetClusterId() != want {
		return &api.Error{Kind: api.Unavailable, Op: "read state", Reason: fmt.Sprintf("a member of another state store (%x, not %x) answers at %s; it is of another incarnation of the cluster, and is not listened to", h.GetClusterId(), want, strings.Join(kv.client.Endpoints(), ", ")), Next: "if the cluster was recovered from a backup, this node finds the new store by itself; see drover recover --help"}
	}
	return nil
}

var _ state.KV = (*KV)(nil)

// Open gives a KV. It does not connect yet; Close it.
func Open(cfg ClientConfig) (*KV, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	switch {
	case cfg.Sync == 0:
		cfg.Sync = 30 * time.Second
	case cfg.Sync < 0:
		cfg.Sync = 0
	}
	kv := &KV{timeout: cfg.Timeout, refused: make(chan struct{}), once: &sync.Once{}}
	kv.store.Store(cfg.Store)
	creds := watchfulCreds{tls: cfg.TLS, refused: func() { kv.once.Do(func() { close(kv.refused) }) }}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		AutoSyncInterval:     cfg.Sync,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions:          []grpc.DialOption{grpc.WithTransportCredentials(creds.build()), grpc.WithConnectParams(reconnect)},
	})
	if err != nil {
		return nil, &api.Error{Kind: api.Invalid, Op: "reach the state store", Err: err}
	}
	kv.client = client
	if kv.prefix, kv.foreign = cfg.Prefix, cfg.External; cfg.Prefix != "" {
		client.KV = namespace.NewKV(client.KV, cfg.Prefix)
		client.Watcher = namespace.NewWatcher(client.Watcher, cfg.Prefix)
		client.Lease = namespace.NewLease(client.Lease, cfg.Prefix)
	}
	return kv, nil
}

// Close ends all connections and watches.
func (kv *KV) Close() error { return kv.client.Close() }

// Client is the client behind the port, for members and users.
func (kv *KV) Client() *clientv3.Client { return kv.client }

// do runs one operation within the time limit and translates its error.
// Operations that the store refused only because its users changed meanwhile
// have had no effect and are repeated.
func (kv *KV) do(ctx context.Context, op, object string, f func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, kv.timeout)
	defer cancel()
	for {
		err := f(limited)
		if err == nil {
			return nil
		}
		if errors.Is(err, rpctypes.ErrAuthOldRevision) && limited.Err() == nil {
			continue
		}
		return kv.translate(ctx, op, object, err)
	}
}

func (kv *KV) translate(ctx context.Context, op, object string, err error) error {
	var mine *api.Error
	if errors.As(err, &mine) {
		return err
	}
	e := &api.Error{Op: op, Object: object, Err: err}
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	switch {
	case ctx.Err() != nil:
		e.Kind, e.Err = api.Canceled, context.Cause(ctx)
	case is(rpctypes.ErrCompacted):
		return state.Compacted(object, 0)
	case is(rpctypes.ErrLeaseNotFound):
		return state.LeaseGone(object)
	case is(rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound, rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken):
		e.Kind, e.Reason = api.Denied, "the state store does not permit this node to do that"
		if kv.foreign {
			e.Object = kv.prefix + object
			e.Reason, e.Next = "the external etcd does not permit it to the user of this node's certificate", "docs/external-etcd.md lists the rights that a node needs below "+kv.prefix+"; whoever runs that etcd gives them"
		}
	case is(rpctypes.ErrNoSpace):
		e.Kind, e.Reason, e.Next = api.Exhausted, "the state store has reached its size limit", "see drover doctor"
	case is(rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrFutureRev, rpctypes.ErrEmptyKey):
		e.Kind = api.Invalid
	case kv.isRefused() && kv.foreign:
		e.Kind, e.Reason, e.Next = api.Denied, "the external etcd refuses this node's certificate for it", "see config.json in the data directory for the file; put a good one in its place and restart the agent"
	case kv.isRefused():
		e.Kind, e.Reason, e.Next = api.Denied, "the state store refuses this node's certificate", "if the node was removed, join it again with a new token"
	default:
		e.Kind = api.Unavailable
		e.Reason = fmt.Sprintf("no answer within %v; waiting for a majority of the members of the state store, known at %s", kv.timeout, strings.Join(kv.client.Endpoints(), ", "))
		e.Next = "see drover node ls for members that are down; what is mounted keeps working"
		if kv.foreign {
			e.Reason = fmt.Sprintf("no answer within %v from the external etcd at %s", kv.timeout, strings.Join(kv.client.Endpoints(), ", "))
			e.Next = "see to that etcd; what is mounted keeps working"
		}
	}
	return e
}

func (kv *KV) isRefused() bool {
	select {
	case <-kv.refused:
		return true
	default:
		return false
	}
}

// Get implements state.KV.
func (kv *KV) Get(ctx context.Context, keys ...string) ([]state.Item, int64, error) {
	items := make([]state.Item, 0, len(keys))
	var revision int64
	for chunk := range slices.Chunk(keys, state.MaxOps) {
		err := kv.do(ctx, "read state", chunk[0], func(ctx context.Context) error {
			got, rev, err := kv.get(ctx, chunk, revision)
			if err != nil {
				return err
			}
			items, revision = append(items, got...), rev
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return items, revision, nil
}

func (kv *KV) get(ctx context.Context, keys []string, revision int64) ([]state.Item, int64, error) {
	ops := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		ops[i] = clientv3.OpGet(key, clientv3.WithRev(revision))
	}
	items := make([]state.Item, len(keys))
	for i, key := range keys {
		items[i].Key = key
	}
	if len(keys) == 1 {
		resp, err := kv.client.Do(ctx, ops[0])
		if err != nil {
			return nil, 0, err
		}
		got := resp.Get()
		if err := kv.check(got.Header); err != nil {
			return nil, 0, err
		}
		for _, found := range got.Kvs {
			items[0].Value, items[0].Mod = found.Value, found.ModRevision
		}
		return items, got.Header.Revision, nil
	}
	resp, err := kv.client.Txn(ctx).Then(ops...).Commit()
	if err == nil {
		err = kv.check(resp.Header)
	}
	if err != nil {
		return nil, 0, err
	}
	for i, r := range resp.Responses {
		for _, found := range r.GetResponseRange().Kvs {
			items[i].Value, items[i].Mod = found.Value, found.ModRevision
		}
	}
	if revision == 0 {
		revision = resp.Header.Revision
	}
	return items, revision, nil
}

// page is how many keys one request of List reads.
const page = 1000

// List implements state.KV.
func (kv *KV) List(ctx context.Context, prefix string, revision int64, each func(state.Item) error) (int64, error) {
	end := clientv3.GetPrefixRangeEnd(prefix)
	for from := prefix; ; {
		var resp *clientv3.GetResponse
		err := kv.do(ctx, "list state", prefix, func(ctx context.Context) (err error) {
			resp, err = kv.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(page), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
			if err == nil {
				err = kv.check(resp.Header)
			}
			return err
		})
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, found := range resp.Kvs {
			if err := each(state.Item{Key: string(found.Key), Value: found.Value, Mod: found.ModRevision}); err != nil {
				return 0, err
			}
		}
		if !resp.More {
			return revision, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// Commit implements state.KV.
func (kv *KV) Commit(ctx context.Context, txn state.Txn) (int64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	conditions := make([]clientv3.Cmp, len(txn.If))
	for i, c := range txn.If {
		conditions[i] = clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Mod)
	}
	var ops []clientv3.Op
	for _, p := range txn.Put {
		ops = append(ops, clientv3.OpPut(p.Key, string(p.Value), clientv3.WithLease(clientv3.LeaseID(p.Lease))))
	}
	for _, key := range txn.Delete {
		ops = append(ops, clientv3.OpDelete(key))
	}
	var revision int64
	err := kv.do(ctx, "change state", txn.Object(), func(ctx context.Context) error {
		resp, err := kv.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
		if err == nil {
			err = kv.check(resp.Header)
		}
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			return &api.Error{Kind: api.Conflict, Op: "change state", Object: txn.Object(), Reason: "it changed meanwhile", Next: "read again and decide again"}
		}
		revision = resp.Header.Revision
		return nil
	})
	return revision, err
}
