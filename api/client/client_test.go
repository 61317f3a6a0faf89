package client

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drover-data/drover/api"
)

// What the server's own checks say names the value that is wrong, without the
// words of the protocol; pages of others lose their line ends.
func TestErrorsThatAreNotOfTheAPI(t *testing.T) {
	for answer, want := range map[string]string{
		`{"detail":"validation failed","errors":[{"message":"expected value to be one of \"btrfs, zfs\"","location":"body.kind"}]}`: `422 Unprocessable Entity: kind: expected value to be one of "btrfs, zfs"`,
		`{"detail":"too long"}`:  "422 Unprocessable Entity: too long",
		"Method Not Allowed\n\n": "422 Unprocessable Entity: Method Not Allowed",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = w.Write([]byte(answer))
		}))
		err := New(s.URL, nil, nil).Do(t.Context(), http.MethodGet, "/", nil, nil)
		s.Close()
		if !api.Is(err, api.Invalid) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q, want %q", err, want)
		}
	}
}
