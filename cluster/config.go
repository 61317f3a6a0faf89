package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/auth"
	"github.com/drover-data/drover/internal/durable"
)

// ConfigFile is the node's configuration in its data directory. init and join
// write it; it says what the units need before they can ask anybody.
const ConfigFile = "config.json"

// Names of what lies in the data directory.
const (
	identityDir   = "identity"
	bootstrapFile = "bootstrap.json"
	joinKeyFile   = "join.key"
)

// Default ports.
const (
	APIPort   = 7433
	StatePort = 7434
	PeerPort  = 7435
)

// Config is a node's configuration.
type Config struct {
	Cluster string `json:"cluster"` // id
	Name    string `json:"name"`    // the node's
	Address string `json:"address"` // host name or IP address under which other nodes reach it
	DataDir string `json:"dataDir"`
	Ports   Ports  `json:"ports"`
	// Endpoints of the state store as known when the node joined; the agent
	// learns newer ones.
	Endpoints []string `json:"endpoints"`
	// External is set when the state lives in an etcd that is not Drover's.
	External *External `json:"external,omitempty"`
	// Candidate: may this node be given a member of the embedded store.
	Candidate bool `json:"candidate"`
}

// Ports of a node.
type Ports struct {
	API   int `json:"api"`
	State int `json:"state"`
	Peer  int `json:"peer"`
}

// External is an etcd cluster that others run.
type External struct {
	CA   string `json:"ca"`   // files, PEM
	Cert string `json:"cert"` //
	Key  string `json:"key"`  //
	// Prefix of all keys: several clusters can share an etcd.
	Prefix string `json:"prefix,omitempty"`
}

// DefaultPrefix is where a cluster keeps its keys in an etcd that is not its own.
func DefaultPrefix(cluster string) string { return "drover/" + cluster + "/" }

// WithDefaults fills in what was left out.
func (c Config) WithDefaults() Config {
	if c.DataDir == "" {
		c.DataDir = "/var/lib/drover"
	}
	for p, d := range map[*int]int{&c.Ports.API: APIPort, &c.Ports.State: StatePort, &c.Ports.Peer: PeerPort} {
		if *p == 0 {
			*p = d
		}
	}
	return c
}

// Validate reports all that is wrong at once.
func (c Config) Validate() error {
	var wrong []string
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if err := auth.CheckNode(c.Name); err != nil {
		add("name: %v", err)
	}
	if !filepath.IsAbs(c.DataDir) {
		add("data directory: %q is not an absolute path", c.DataDir)
	}
	seen := map[int]string{}
	for _, p := range []struct {
		name string
		port int
	}{{"API", c.Ports.API}, {"state", c.Ports.State}, {"peer", c.Ports.Peer}} {
		if p.port < 1 || p.port > 65535 {
			add("%s port: %d is not from 1 to 65535", p.name, p.port)
		} else if other := seen[p.port]; other != "" {
			add("%s port: %d is the %s port already", p.name, p.port, other)
		}
		seen[p.port] = p.name
	}
	if err := auth.CheckAddress(net.JoinHostPort(c.Address, strconv.Itoa(APIPort))); err != nil {
		add("address: %v", err)
	}
	for _, e := range c.Endpoints {
		if !strings.HasPrefix(e, "https://") || auth.CheckAddress(strings.TrimPrefix(e, "https://")) != nil {
			add("endpoint: %q is not https://host:port", e)
		}
	}
	if x := c.External; x != nil {
		for what, file := range map[string]string{"CA": x.CA, "certificate": x.Cert, "key": x.Key} {
			if _, err := os.Stat(file); err != nil {
				add("%s of the external etcd: %v", what, err)
			}
		}
		if x.Prefix != "" && (!strings.HasSuffix(x.Prefix, "/") || strings.ContainsAny(x.Prefix, " \t\n")) {
			add("prefix in the external etcd: %q does not end in / or has blanks", x.Prefix)
		}
		if len(c.Endpoints) == 0 {
			add("an external etcd needs endpoints")
		}
	}
	if wrong != nil {
		return &api.Error{Kind: api.Invalid, Op: "configure node", Object: c.Name, Reason: strings.Join(wrong, "; ")}
	}
	return nil
}

// APIAddress is where the node's agent serves.
func (c Config) APIAddress() string { return net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.API)) }

// StateURL is where clients of the state store would reach this node's member.
func (c Config) StateURL() string {
	return "https://" + net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.State))
}

// PeerURL is where other members would reach this node's member.
func (c Config) PeerURL() string {
	return "https://" + net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.Peer))
}

// IdentityDir is where the node's keys and certificates lie.
func (c Config) IdentityDir() string { return filepath.Join(c.DataDir, identityDir) }

// StateDir is where the embedded member keeps its data.
func (c Config) StateDir() string { return filepath.Join(c.DataDir, "state") }

// LoadConfig reads a data directory's configuration; NotFound when the node
// belongs to no cluster.
func LoadConfig(dataDir string) (Config, error) {
	path := filepath.Join(dataDir, ConfigFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, &api.Error{Kind: api.NotFound, Op: "read configuration", Object: path, Reason: "this host belongs to no cluster yet", Next: "use drover init or drover join"}
	}
	if err != nil {
		return Config{}, fileError("read configuration", path, err)
	}
	var c Config
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, &api.Error{Kind: api.Damaged, Op: "read configuration", Object: path, Err: err}
	}
	return c, c.Validate()
}

// Save writes the configuration.
func (c Config) Save() error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(c.DataDir, ConfigFile), append(data, '\n'))
}

func writeFile(path string, data []byte) error {
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fileError("write", path, err)
	}
	if err := durable.WriteFile(path, data, 0o600); err != nil {
		return fileError("write", path, err)
	}
	return nil
}

func fileError(op, path string, err error) error {
	kind := api.Internal
	if errors.Is(err, fs.ErrPermission) {
		kind = api.Denied
	}
	return &api.Error{Kind: kind, Op: op, Object: path, Err: err}
}
