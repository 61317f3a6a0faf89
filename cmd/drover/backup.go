package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/backup"
)

// takenBackup is the API's answer.
type takenBackup struct {
	Header backup.Header `json:"header"`
	File   []byte        `json:"file"`
}

func backupCommand(t *talk) *cobra.Command {
	var seal backup.Seal
	var key keyFlags
	var verify bool
	c := &cobra.Command{
		Use:   "backup [FILE]",
		Short: "Save the cluster's state in a file, or check such a file",
		Long: `Save everything that Drover keeps in the cluster's state store in a file: nodes,
users, volumes with their owners, and the key of the cluster's CA, encrypted.
It holds no data of volumes. drover recover brings a cluster back from it.

The CA's key is encrypted under a passphrase or for age public keys; without
either nothing is written, unless you say that it may stand there in clear.
The file is read back and checked after it was written. FILE - is standard output.`,
		Example: `  drover backup --passphrase-file /root/backup.pass
  drover backup --recipient age1... /mnt/offsite/drover.backup
  drover backup --verify /mnt/offsite/drover.backup --passphrase-file /root/backup.pass`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			file := ""
			if len(args) > 0 {
				file = args[0]
			}
			k, err := key.read()
			if err != nil {
				return err
			}
			if verify {
				return verifyBackup(c, t, file, k)
			}
			seal.Passphrase = k.Passphrase
			return takeBackup(c, t, file, seal)
		},
	}
	t.flags(c)
	f := c.Flags()
	key.flags(f)
	f.StringArrayVar(&seal.Recipients, "recipient", nil, "age public key (age1...) to encrypt the secrets for; may be repeated")
	f.BoolVar(&seal.Clear, "secrets-in-clear", false, "write the key of the cluster's CA unencrypted: whoever reads the file can make themselves an administrator")
	f.BoolVar(&verify, "verify", false, "check FILE, and with a key its secrets too; nothing is written")
	return c
}

// keyFlags are how a backup's secrets are opened.
type keyFlags struct{ passphrase, identity string }

func (k *keyFlags) flags(f *pflag.FlagSet) {
	k.passphraseFlag(f)
	f.StringVar(&k.identity, "identity-file", "", "file with the age secret key")
}

func (k *keyFlags) passphraseFlag(f *pflag.FlagSet) {
	f.StringVar(&k.passphrase, "passphrase-file", "", "file with the passphrase, - for standard input")
}

func (k *keyFlags) read() (out backup.Key, err error) {
	if out.Passphrase, err = readSecret(k.passphrase); err != nil {
		return out, err
	}
	out.Identities, err = readSecret(k.identity)
	return out, err
}

// readSecret reads a secret from a file, from standard input for "-"; no file is none.
func readSecret(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	var text []byte
	var err error
	if path == "-" {
		text, err = io.ReadAll(io.LimitReader(os.Stdin, 1<<16))
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return "", &api.Error{Kind: api.Invalid, Op: "read key", Object: path, Err: err}
	}
	out := strings.TrimRight(string(text), "\r\n")
	if out == "" {
		return "", &api.Error{Kind: api.Invalid, Op: "read key", Object: path, Reason: "it is empty"}
	}
	return out, nil
}

func takeBackup(c *cobra.Command, t *talk, file string, seal backup.Seal) error {
	if seal.Passphrase != "" && len(seal.Passphrase) < 12 {
		return &api.Error{Kind: api.Invalid, Op: "encrypt backup", Reason: "a passphrase of fewer than 12 characters can be guessed", Next: "use a longer one, or an age key (age-keygen makes one)"}
	}
	var taken takenBackup
	if err := t.do(c.Context(), http.MethodPost, "/v1/backup", seal, &taken); err != nil {
		return err
	}
	if file == "-" {
		_, err := c.OutOrStdout().Write(taken.File)
		return err
	}
	if file == "" {
		file = fmt.Sprintf("drover-%s-%s.backup", taken.Header.Cluster.Name, taken.Header.Taken.UTC().Format("20060102T150405Z"))
	}
	if err := renameio.WriteFile(file, taken.File, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return &api.Error{Kind: api.Internal, Op: "write backup", Object: file, Err: err}
	}
	written, err := os.ReadFile(file)
	if err == nil && !bytes.Equal(written, taken.File) {
		err = &api.Error{Kind: api.Damaged, Op: "read back backup", Object: file, Reason: "it is not what was written", Next: "write it to another disk"}
	}
	if err != nil {
		return err
	}
	b, err := backup.Decode(written)
	if err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), shown(b, file), func(w *tabwriter.Writer) { backupRows(w, b, file, "written, read back and checked") })
}

func verifyBackup(c *cobra.Command, t *talk, file string, k backup.Key) error {
	b, err := readBackup(file)
	if err != nil {
		return err
	}
	state := "the records are what was written; the secrets were not opened (no key given)"
	if b.Header.Sealed == "clear" || k != (backup.Key{}) {
		if _, err := b.Open(k); err != nil {
			return err
		}
		state = "records and secrets are what was written"
	}
	return t.print(c.OutOrStdout(), shown(b, file), func(w *tabwriter.Writer) { backupRows(w, b, file, state) })
}

func readBackup(file string) (backup.Backup, error) {
	if file == "" {
		return backup.Backup{}, &api.Error{Kind: api.Invalid, Op: "read backup", Reason: "no file is given"}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return backup.Backup{}, &api.Error{Kind: api.NotFound, Op: "read backup", Object: file, Err: err}
	}
	b, err := backup.Decode(text)
	if e, ok := err.(*api.Error); ok && e.Object == "" {
		e.Object = file
	}
	return b, err
}

// shownBackup is what machines are shown of a backup.
type shownBackup struct {
	File    string      `json:"file"`
	Cluster api.Cluster `json:"cluster"`
	Taken   time.Time   `json:"taken"`
	Version string      `json:"version"`
	Records int         `json:"records"`
	Secrets string      `json:"secrets"`
	Digest  string      `json:"digest"`
}

func shown(b backup.Backup, file string) shownBackup {
	h := b.Header
	return shownBackup{File: file, Cluster: h.Cluster, Taken: h.Taken, Version: h.Software, Records: h.Records, Secrets: h.Sealed, Digest: h.Digest}
}

func backupRows(w *tabwriter.Writer, b backup.Backup, file, state string) {
	h := b.Header
	row(w, "file", file)
	row(w, "cluster", fmt.Sprintf("%s (%.12s), incarnation %d", h.Cluster.Name, h.Cluster.ID, h.Cluster.Incarnation))
	row(w, "taken", h.Taken.Local().Format("2006-01-02 15:04:05")+" by "+h.Node+", version "+h.Software)
	row(w, "records", fmt.Sprintf("%d, digest %.16s", h.Records, h.Digest))
	row(w, "secrets", map[string]string{"age": "encrypted", "clear": "IN CLEAR"}[h.Sealed])
	row(w, "state", state)
}
