// Package transfer brings one snapshot from one node's pool to another's over
// a connection that may break at any byte: sessions, offsets, acknowledgements.
// It knows pools by their contract, and neither owners nor containers nor why
// a snapshot is brought. docs/design/transfer.md has the protocol.
package transfer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/repo"
	"github.com/drover-data/drover/storage"
)

// ALPN names the protocol in the TLS handshake.
const ALPN = "drover-sync/1"

// common is the version of the protocol that a session is held in: the newest
// that both sides know.
func common(o Offer) (int, error) {
	theirs := api.Versions{Oldest: o.Oldest, Newest: o.Protocol}
	if theirs.Oldest == 0 {
		theirs.Oldest = theirs.Newest
	}
	n, ok := api.Speaks().Common(theirs)
	if !ok {
		return 0, &api.Error{Kind: api.Unsupported, Op: "receive snapshot", Object: o.Snapshot, Reason: fmt.Sprintf("the source speaks version %s of the protocol, this node %s", theirs, api.Speaks()), Next: "upgrade the older of the two nodes"}
	}
	return n, nil
}

// frameType is the first byte of a frame.
type frameType byte

const (
	frameOffer frameType = iota + 1
	frameAnswer
	frameData
	frameAck
	frameEnd
	frameDone
	frameError
	framePing
)

const (
	headerSize = 8
	// blockSize is the largest piece of a stream in one frame.
	blockSize = 1 << 20
	// maxPayload bounds what a peer can make us allocate.
	maxPayload = 4<<20 + 8
)

// Offer is what a source says first.
type Offer struct {
	Protocol   int              `json:"protocol"`         // the newest that the source speaks
	Oldest     int              `json:"oldest,omitempty"` // the oldest; 0: only the newest
	Volume     string           `json:"volume"`           // id
	Branch     string           `json:"branch"`
	Move       string           `json:"move,omitempty"` // the wish this is part of, for the target's permission check
	Pool       string           `json:"pool"`
	Snapshot   string           `json:"snapshot"`
	Source     repo.Side        `json:"source"`
	Stream     string           `json:"stream"` // identity of what the stream's bytes depend on besides route and snapshot
	Size       int64            `json:"size,omitempty"`
	Fidelity   storage.Fidelity `json:"fidelity"`
	AllowLoss  bool             `json:"allowLoss,omitempty"`
	Note       []byte           `json:"note,omitempty"`
	Compressed bool             `json:"compressed,omitempty"`
}

// Answer is what a target says to an offer.
type Answer struct {
	Protocol int        `json:"protocol"` // that the session goes on in
	Route    repo.Route `json:"route"`
	Offset   int64      `json:"offset"`
}

// Done says that the snapshot is durable at the target.
type Done struct {
	Copy repo.Copy `json:"copy"`
}

// writeFrame writes a header and its payload parts.
func writeFrame(w io.Writer, t frameType, payload []byte) error {
	var header [headerSize]byte
	header[0] = byte(t)
	binary.BigEndian.PutUint32(header[4:], uint32(len(payload)))
	if _, err := w.Write(header[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

func writeJSON(w io.Writer, t frameType, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, t, payload)
}

// readHeader reads a frame's type and payload length.
func readHeader(r io.Reader) (frameType, int, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, 0, err
	}
	t, n := frameType(header[0]), binary.BigEndian.Uint32(header[4:])
	switch {
	case t < frameOffer || t > framePing || header[1]|header[2]|header[3] != 0:
		return 0, 0, damaged(fmt.Sprintf("a frame begins with % x", header))
	case n > maxPayload:
		return 0, 0, damaged(fmt.Sprintf("a frame of %d bytes, at most %d are allowed", n, maxPayload))
	}
	return t, int(n), nil
}

// readFrame reads a whole frame; buf is used when it is large enough.
func readFrame(r io.Reader, buf []byte) (frameType, []byte, error) {
	t, n, err := readHeader(r)
	if err != nil {
		return 0, nil, err
	}
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, unexpected(err)
	}
	return t, buf, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func damaged(reason string) error {
	return &api.Error{Kind: api.Damaged, Op: "read transfer session", Reason: reason, Next: "make sure that both nodes run versions of Drover that fit"}
}

// decode reads a frame's JSON.
func decode(payload []byte, v any) error {
	if err := json.Unmarshal(payload, v); err != nil {
		return &api.Error{Kind: api.Damaged, Op: "read transfer session", Reason: "a frame's text cannot be read", Err: err}
	}
	return nil
}

// remote turns an error frame into an error.
func remote(payload []byte) error {
	var e api.Error
	if err := decode(payload, &e); err != nil {
		return err
	}
	if e.Kind == "" {
		e.Kind = api.Internal
	}
	return &e
}

// passing reports whether an error can pass by itself, so that trying again helps.
func passing(err error) bool {
	switch api.KindOf(err) {
	case api.Invalid, api.Denied, api.Unauthenticated, api.Unsupported, api.Damaged, api.Exhausted, api.ReadOnly, api.Conflict, api.NotFound, api.Canceled:
		return false
	}
	return true
}
