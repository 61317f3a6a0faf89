package registry

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// lifetime of what /v2/token gives. It says only which token somebody logged in with;
// that this one still counts, and for what, is asked each time.
const lifetime = 5 * time.Minute

// bearer is what /v2/token gives, signed.
type bearer struct {
	Token string `json:"t,omitempty"` // id; "" is nobody in particular
	End   int64  `json:"e"`           // Unix seconds
}

func (h *Handler) sign(text string) string {
	m := hmac.New(sha256.New, h.o.Secret)
	m.Write([]byte("drover hub bearer\x00" + text))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func (h *Handler) seal(b bearer) (string, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	body := base64.RawURLEncoding.EncodeToString(text)
	return body + "." + h.sign(body), nil
}

func (h *Handler) unseal(text string) (bearer, bool) {
	var b bearer
	body, sum, ok := strings.Cut(text, ".")
	if !ok || !hmac.Equal([]byte(sum), []byte(h.sign(body))) {
		return b, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil || json.Unmarshal(raw, &b) != nil || h.o.Now().Unix() >= b.End {
		return b, false
	}
	return b, true
}

// identify finds who asks; given is false when nobody said so.
func (h *Handler) identify(r *http.Request) (who hub.Identity, given bool, err error) {
	head := r.Header.Get("Authorization")
	if head == "" {
		return hub.Identity{}, false, nil
	}
	wrong := &api.Error{Kind: api.Unauthenticated, Op: "log in", Reason: "the login has ended or cannot be read"}
	if user, secret, ok := r.BasicAuth(); ok {
		if user == "" {
			return hub.Identity{}, true, wrong
		}
		who, err = h.o.Gate.Identify(r.Context(), user, secret)
		return who, true, err
	}
	scheme, text, _ := strings.Cut(head, " ")
	b, ok := h.unseal(strings.TrimSpace(text))
	if !strings.EqualFold(scheme, "Bearer") || !ok {
		return hub.Identity{}, true, wrong
	}
	if b.Token == "" {
		return hub.Identity{}, true, nil
	}
	who, err = h.o.Gate.Recall(r.Context(), b.Token)
	return who, true, err
}

// outside is how clients reach the hub.
func (h *Handler) outside(r *http.Request) string {
	if h.o.URL != "" {
		return strings.TrimSuffix(h.o.URL, "/")
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// challenge asks for a login: Docker and Podman log in, or come as nobody, when it is
// by tokens; with Basic alone they could do just one of them.
func (h *Handler) challenge(w http.ResponseWriter, r *http.Request, at route, actions string) {
	text := fmt.Sprintf(`Bearer realm="%s/v2/token",service="drover-hub"`, h.outside(r))
	if at.repository != "" {
		text += fmt.Sprintf(`,scope="repository:%s:%s"`, at.repository, actions)
	}
	w.Header().Set("WWW-Authenticate", text)
}

// giveToken answers /v2/token (https://distribution.github.io/distribution/spec/auth/token/).
func (h *Handler) giveToken(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return &refusal{405, "UNSUPPORTED", "tokens are given to GET with Basic authentication", 0}
	}
	who, _, err := h.identify(r)
	if err != nil {
		return err
	}
	now := h.o.Now()
	text, err := h.seal(bearer{who.Token, now.Add(lifetime).Unix()})
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	return answer(w, http.StatusOK, "application/json", map[string]any{
		"token": text, "access_token": text, "expires_in": int(lifetime.Seconds()), "issued_at": now.UTC().Format(time.RFC3339),
	})
}

// allow finds who asks and refuses who may not; the identity and right are for what follows.
func (h *Handler) allow(w http.ResponseWriter, r *http.Request, at route, need hub.Right) (hub.Identity, hub.Right, error) {
	actions := "pull"
	if need >= hub.Write {
		actions = "pull,push"
	}
	who, given, err := h.identify(r)
	if api.Is(err, api.Unauthenticated) {
		h.challenge(w, r, at, actions)
	}
	if err != nil {
		return who, hub.None, err
	}
	if at.repository == "" {
		if !given {
			h.challenge(w, r, at, actions)
			return who, hub.None, &refusal{401, "UNAUTHORIZED", "log in, or come as nobody with a token from /v2/token", 0}
		}
		return who, hub.None, nil
	}
	right, err := h.o.Gate.Right(r.Context(), who, at.repository)
	switch {
	case err != nil:
		return who, right, err
	case right >= need:
		return who, right, nil
	case who.User == "":
		h.challenge(w, r, at, actions)
		return who, right, &refusal{401, "UNAUTHORIZED", "log in", 0}
	case right < hub.Read:
		return who, right, &refusal{404, "NAME_UNKNOWN", "there is no such repository, or it is not yours to see", 0}
	}
	return who, right, &refusal{403, "DENIED", fmt.Sprintf("%s has the right to %s here, and this needs %s", who.User, right, need), 0}
}
