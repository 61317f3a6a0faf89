package registry

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
	"github.com/drover-data/drover/hub/store"
)

// refusal is an answer of the distribution specification that is not what was asked for.
type refusal struct {
	status int
	code   string
	text   string
	after  int // seconds to wait, 0 for none
}

func (r *refusal) Error() string { return r.code + " " + r.text }

// refuse says what an error is to a client: once, here.
func refuse(err error) *refusal {
	var known *refusal
	if errors.As(err, &known) {
		return known
	}
	text := err.Error()
	switch api.KindOf(err) {
	case api.NotFound:
		for _, x := range []struct {
			is   error
			code string
		}{{hub.ErrPart, "MANIFEST_BLOB_UNKNOWN"}, {hub.ErrRepository, "NAME_UNKNOWN"}, {hub.ErrManifest, "MANIFEST_UNKNOWN"}, {hub.ErrUpload, "BLOB_UPLOAD_UNKNOWN"}} {
			if errors.Is(err, x.is) {
				return &refusal{404, x.code, text, 0}
			}
		}
		return &refusal{404, "BLOB_UNKNOWN", text, 0}
	case api.Invalid:
		return &refusal{400, "MANIFEST_INVALID", text, 0}
	case api.Unauthenticated:
		return &refusal{401, "UNAUTHORIZED", text, 0}
	case api.Denied:
		return &refusal{403, "DENIED", text, 0}
	case api.Conflict:
		return &refusal{412, "PRECONDITION_FAILED", text, 0}
	case api.InUse:
		return &refusal{409, "IN_USE", text, 0}
	case api.Exhausted:
		return &refusal{507, "QUOTA_EXCEEDED", text, 0}
	case api.ReadOnly, api.Unsupported:
		return &refusal{405, "UNSUPPORTED", text, 0}
	case api.Damaged: // not a status that clients try again
		return &refusal{422, "DIGEST_INVALID", text, 0}
	case api.Unavailable, api.Unknown, api.Canceled:
		after := 2
		if errors.Is(err, store.ErrDeleting) {
			after = 1
		}
		return &refusal{503, "UNAVAILABLE", text, after}
	}
	return &refusal{500, "UNKNOWN", "the hub cannot do it; its log says more", 0}
}

func (r *refusal) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	for _, k := range []string{"ETag", "Content-Length", "Docker-Content-Digest", "Last-Modified"} {
		h.Del(k)
	}
	if r.after > 0 {
		h.Set("Retry-After", strconv.Itoa(r.after))
	}
	w.WriteHeader(r.status)
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	_ = json.NewEncoder(w).Encode(map[string][]one{"errors": {{r.code, r.text}}})
}
