package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover-data/drover/api"
)

// What names of each kind begin with.
const (
	CommitPrefix = "c-"
	BranchPrefix = "b-"
	TagPrefix    = "t-"
	KeyPrefix    = "k-"
)

// RefAnnotation holds the whole of a name that was cut.
const RefAnnotation = "org.drover.ref"

var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// CheckName refuses what is not a tag as OCI registries allow them.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return &api.Error{Kind: api.Invalid, Op: "use name", Object: fmt.Sprintf("%.150q", name), Reason: "remotes cannot keep it"}
	}
	return nil
}

const (
	maxTag  = 128
	cutTag  = 90
	sumMark = "_-" // no escaped byte looks like it
)

// Escape is a branch's or tag's name as a remote keeps it, without its prefix.
func Escape(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	out := b.String()
	if len(out) <= maxTag-len(BranchPrefix) {
		return out
	}
	sum := sha256.Sum256([]byte(name))
	return out[:cutTag] + sumMark + hex.EncodeToString(sum[:16])
}

// Unescape gives the name back; false for one that was cut (its manifest has
// the whole of it) or that Escape does not make.
func Unescape(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		c, err := hex.DecodeString(s[i+1 : i+3])
		if err != nil {
			return "", false
		}
		b.Write(c)
		i += 2
	}
	name := b.String()
	return name, Escape(name) == s
}

// Moved is the error for a name that is not where it was expected.
func Moved(name string, now, expect digest.Digest) error {
	at := func(d digest.Digest) string {
		if d == "" {
			return "nothing"
		}
		return string(d)
	}
	return &api.Error{Kind: api.Conflict, Op: "move name", Object: name, Reason: fmt.Sprintf("it points to %s, not to %s: somebody else changed it", at(now), at(expect)), Next: "fetch, look at what changed, and push again"}
}

// Bytes is content that is in memory. Its readers are io.ReaderAt too.
func Bytes(b []byte) Content {
	return func() (io.ReadCloser, error) { return inMemory{bytes.NewReader(b)}, nil }
}

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

// Verify checks what is read against its digest; the read that meets the end
// fails if it does not fit.
func Verify(r io.ReadCloser, d digest.Digest) io.ReadCloser {
	return &verifying{r, d, d.Verifier()}
}

type verifying struct {
	io.ReadCloser
	want digest.Digest
	sum  digest.Verifier
}

func (v *verifying) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	_, _ = v.sum.Write(p[:n])
	if err == io.EOF && !v.sum.Verified() {
		return n, Damaged(v.want)
	}
	return n, err
}

// CheckDigest refuses what blobs are not named by.
func CheckDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return &api.Error{Kind: api.Invalid, Op: "find blob", Object: fmt.Sprintf("%.100q", string(d)), Reason: "not a SHA-256 digest"}
	}
	return nil
}

// Ended is the error of a call whose context has ended, nil while it has not.
func Ended(ctx context.Context, op, object string) error {
	if ctx.Err() == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return &api.Error{Kind: api.Unavailable, Op: op, Object: object, Reason: "the remote did not answer in time", Err: cause, Next: "try again"}
	}
	return &api.Error{Kind: api.Canceled, Op: op, Object: object, Err: cause}
}

// Damaged is the error for content that does not have its digest.
func Damaged(d digest.Digest) error {
	return &api.Error{Kind: api.Damaged, Op: "read blob", Object: string(d), Reason: "what the remote gave does not have that digest", Next: "drover verify tells which commits are affected; push them again from a node that has them"}
}

// ParseManifest checks a manifest or index against its digest and says what it is.
func ParseManifest(d digest.Digest, text []byte) (ocispec.Descriptor, []byte, error) {
	if d.Validate() != nil || d.Algorithm().FromBytes(text) != d {
		return ocispec.Descriptor{}, nil, Damaged(d)
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return ocispec.Descriptor{}, nil, &api.Error{Kind: api.Damaged, Op: "read manifest", Object: string(d), Reason: "it is not JSON", Err: err}
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(text))}, text, nil
}
