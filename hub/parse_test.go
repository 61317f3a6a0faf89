package hub

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/remote"
)

// FuzzManifest: what is taken names digests that are ones, and each once.
func FuzzManifest(f *testing.F) {
	d := string(digest.FromString("x"))
	f.Add("application/vnd.oci.image.manifest.v1+json", []byte(`{"schemaVersion":2,"artifactType":"application/vnd.drover.commit.v1","config":{"mediaType":"application/vnd.drover.record.v1+json","digest":"`+d+`","size":1},"layers":[{"digest":"`+d+`","size":2}],"subject":{"digest":"`+d+`"}}`))
	f.Add("application/vnd.oci.image.index.v1+json", []byte(`{"manifests":[{"digest":"`+d+`","size":1}],"annotations":{"a":"b"}}`))
	f.Add("", []byte(`{"mediaType":"application/b","layers":[{"mediaType":"foreign","urls":["x"]}]}`))
	f.Add("application/y; charset=utf-8", []byte("{}"))
	f.Add("text/html", []byte("{}"))
	f.Add("application/y", []byte("null"))
	f.Fuzz(func(t *testing.T, media string, body []byte) {
		m, err := ParseManifest(media, body)
		if err != nil {
			if !api.Is(err, api.Invalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		if !json.Valid(body) || m.Digest != digest.FromBytes(body) || !strings.HasPrefix(m.Media, "application/") || m.Size != int64(len(body)) {
			t.Fatalf("%+v", m)
		}
		for _, list := range [][]digest.Digest{m.Blobs, m.Manifests} {
			if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
				t.Fatalf("%v", list)
			}
			for _, d := range list {
				if remote.CheckDigest(d) != nil {
					t.Fatalf("%q", d)
				}
			}
		}
		if len(m.Blobs) > 0 && len(m.Manifests) > 0 {
			t.Fatal("an index and a manifest at once")
		}
		if (m.Record != "" && !slices.Contains(m.Blobs, m.Record)) || (m.First != "" && !slices.Contains(m.Manifests, m.First)) {
			t.Fatalf("%+v", m)
		}
	})
}

// FuzzRecord: what is taken is a commit with parents that are commits.
func FuzzRecord(f *testing.F) {
	id := strings.Repeat("0a", 20)
	f.Add([]byte(`{"format":1,"id":"` + id + `","parents":["` + strings.Repeat("0b", 20) + `"],"time":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"format":1,"id":"` + id + `","parents":["` + id + `"]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseRecord(text)
		if err != nil {
			return
		}
		if !api.IsCommitID(c.ID) || slices.Contains(c.Parents, c.ID) || slices.ContainsFunc(c.Parents, func(p string) bool { return !api.IsCommitID(p) }) || c.Time.Year() > 9999 {
			t.Fatalf("%+v", c)
		}
	})
}

func TestMatches(t *testing.T) {
	for _, x := range []struct {
		pattern, name string
		want          bool
	}{
		{"main", "main", true},
		{"main", "main2", false},
		{"*", "", true},
		{"*", "a/b", true},
		{"release/*", "release/1", true},
		{"release/*", "release", false},
		{"*-stable", "1-stable", true},
		{"*-stable", "1-stable2", false},
		{"a*b*c", "abc", true},
		{"a*b*c", "axbxbxc", true},
		{"a*b*c", "ac", false},
		{"a*a", "a", false},
		{"**", "x", true},
	} {
		if Matches(x.pattern, x.name) != x.want {
			t.Errorf("%q %q", x.pattern, x.name)
		}
	}
}

func TestProtects(t *testing.T) {
	long := strings.Repeat("release/", 20)
	r := Repository{Protected: []string{"main", "release/*", strings.Repeat("x", 150)}}
	for name, want := range map[string]string{
		"b-main": "main", "t-main": "", "main": "", "b-main2": "", "b-release_2f1": "release/*",
		"b-" + remote.Escape(long):                     "release/*", // cut: as much of it as is there
		"b-" + remote.Escape(strings.Repeat("x", 150)): strings.Repeat("x", 150),
		"b-" + remote.Escape(strings.Repeat("y", 150)): "",
	} {
		if got := r.Protects(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestRight(t *testing.T) {
	for r := None; r <= Admin; r++ {
		text, err := json.Marshal(r)
		if err != nil || !bytes.Equal(text, []byte(`"`+r.String()+`"`)) {
			t.Errorf("%s %v", text, err)
		}
		var again Right
		if err := json.Unmarshal(text, &again); err != nil || again != r {
			t.Errorf("%v %v", again, err)
		}
	}
	var r Right
	if json.Unmarshal([]byte(`"owner"`), &r) == nil {
		t.Error("owner is a right")
	}
}
