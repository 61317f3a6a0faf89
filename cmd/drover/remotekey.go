package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/drover-data/drover/api"
)

// passphraseVariable holds a passphrase for programs that cannot type one.
const passphraseVariable = "DROVER_PASSPHRASE"

func remoteKeyCommand(t *talk) *cobra.Command {
	c := &cobra.Command{
		Use: "key", Short: "Keys that seal what is pushed to a remote",
		Long: `With a key on a remote, everything but ids, parents, times, branches and sizes is
sealed on the volume's node before it leaves. The remote keeps the key itself
too, wrapped with a passphrase or for age public keys. Whoever has neither the key
nor what opens the wrapped one cannot read those commits any more, and neither
can Drover: keep a recovery copy (drover remote key export).

A passphrase is asked for on the terminal, or read from --passphrase-file or
from the variable ` + passphraseVariable + `; it is never a part of the command line.`,
	}
	c.AddCommand(
		remoteKeyMake(t, false), remoteKeyMake(t, true), remoteKeyList(t), remoteKeyWrap(t), remoteKeyUnlock(t),
		remoteKeyExport(t), remoteKeyRemove(t),
	)
	return c
}

// keysPath is where the keys of a volume's remote are, as the first two arguments name it.
func keysPath(args []string, rest string) (string, error) {
	volume, branch, err := volumeAt(args[0])
	if err != nil {
		return "", err
	}
	if branch != "" {
		return "", &api.Error{Kind: api.Invalid, Op: "read volume", Object: args[0], Reason: "keys are those of a volume's remote, not of a branch", Next: "leave out what comes after the @"}
	}
	return remotePath(volume, args[1:min(2, len(args))], "/keys"+rest), nil
}

// sealFlags say who can open a key that is wrapped.
type sealFlags struct {
	key        keyFlags
	recipients []string
}

func (s *sealFlags) flags(f *pflag.FlagSet) {
	s.key.passphraseFlag(f)
	f.StringArrayVar(&s.recipients, "recipient", nil, "age public key (age1...) to wrap the key for, instead of a passphrase; may be repeated")
}

func (s *sealFlags) read(c *cobra.Command) (api.SealKey, error) {
	k, err := s.key.read()
	out := api.SealKey{Passphrase: k.Passphrase, Recipients: s.recipients}
	if err != nil || out.Passphrase != "" || len(out.Recipients) > 0 {
		return out, err
	}
	out.Passphrase, err = passphrase(c, true)
	return out, err
}

// openFlags are what opens the keys of a remote.
type openFlags struct {
	key  keyFlags
	copy string
}

func (o *openFlags) flags(f *pflag.FlagSet) {
	o.key.flags(f)
	f.StringVar(&o.copy, "recovery-file", "", "file with a recovery copy of the key, - for standard input")
}

// read gives what was said by flags, or by the variable.
func (o *openFlags) read() (api.OpenKey, error) {
	k, err := o.key.read()
	if err != nil {
		return api.OpenKey{}, err
	}
	out := api.OpenKey{Passphrase: k.Passphrase, Identity: k.Identities}
	if out.Copy, err = readSecret(o.copy); err != nil {
		return out, err
	}
	if out == (api.OpenKey{}) {
		out.Passphrase = os.Getenv(passphraseVariable)
	}
	return out, nil
}

// passphrase takes one from the variable, or asks on the terminal for it, twice
// for a new one.
func passphrase(c *cobra.Command, fresh bool) (string, error) {
	const op = "read passphrase"
	if p := os.Getenv(passphraseVariable); p != "" {
		return p, nil
	}
	in := int(os.Stdin.Fd())
	if !term.IsTerminal(in) {
		return "", &api.Error{Kind: api.Invalid, Op: op, Reason: "none is given, and there is no terminal to ask for it", Next: "give --passphrase-file, or set " + passphraseVariable}
	}
	ask := func(prompt string) ([]byte, error) {
		fmt.Fprint(c.ErrOrStderr(), prompt)
		defer fmt.Fprintln(c.ErrOrStderr())
		return term.ReadPassword(in)
	}
	first, err := ask("Passphrase: ")
	if err != nil {
		return "", &api.Error{Kind: api.Invalid, Op: op, Err: err}
	}
	if fresh {
		again, err := ask("Once more: ")
		if err != nil {
			return "", &api.Error{Kind: api.Invalid, Op: op, Err: err}
		}
		if !bytes.Equal(first, again) {
			return "", &api.Error{Kind: api.Invalid, Op: op, Reason: "the two are not the same", Next: "try again"}
		}
	}
	if len(first) == 0 {
		return "", &api.Error{Kind: api.Invalid, Op: op, Reason: "it is empty", Next: "try again"}
	}
	return string(first), nil
}

func remoteKeyMake(t *talk, rotate bool) *cobra.Command {
	var seal sealFlags
	c := &cobra.Command{
		Use: "new VOLUME [REMOTE]", Short: "Make a key, and seal with it what is pushed from now on",
		Long: `Make a key of 32 random bytes, keep it on the volume's node and, wrapped with a
passphrase or for age public keys, at the remote. What is pushed from now on is
sealed with it. Other nodes get it when the volume moves to them.`,
		Example: "  drover remote key new pg\n  drover remote key new pg backup --recipient age1...",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keysPath(args, "")
			if err != nil {
				return err
			}
			in, err := seal.read(c)
			if err != nil {
				return err
			}
			in.Rotate = rotate
			return t.keyMade(c, path, in, args)
		},
	}
	if rotate {
		c.Use, c.Short = "rotate VOLUME [REMOTE]", "Seal with another key from now on"
		c.Long = `Make another key and seal with it what is pushed from now on. The first push
after it sends everything anew. What was pushed before stays sealed with the old
key, which is kept for reading until drover remote key rm.`
		c.Example = "  drover remote key rotate pg backup --passphrase-file /root/new.pass"
	}
	seal.flags(c.Flags())
	return c
}

// keyMade has a key made or wrapped, and shows it.
func (t *talk) keyMade(c *cobra.Command, path string, in api.SealKey, args []string) error {
	var k api.RemoteKey
	if err := t.do(c.Context(), http.MethodPost, path, in, &k); err != nil {
		return err
	}
	return t.print(c.OutOrStdout(), k, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "key %s, kept at the remote for whoever has the %s\n", k.ID, k.Wrapped)
		if k.Warning != "" {
			fmt.Fprintln(w, k.Warning)
		}
		if in.ID == "" {
			fmt.Fprintf(w, "keep a recovery copy in a safe place: drover remote key export %s --out FILE\n", strings.Join(args, " "))
		}
	})
}

func remoteKeyWrap(t *talk) *cobra.Command {
	var seal sealFlags
	var id string
	c := &cobra.Command{
		Use: "wrap VOLUME [REMOTE]", Short: "Keep a key at the remote for another passphrase or other recipients",
		Long: `Replace the wrapped key at the remote by the same key, wrapped for another
passphrase or other age public keys. Who could open it before may have kept it:
that is what drover remote key rotate is for.`,
		Example: "  drover remote key wrap pg --recipient age1... --recipient age1...",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keysPath(args, "/wrap")
			if err != nil {
				return err
			}
			in, err := seal.read(c)
			if err != nil {
				return err
			}
			in.ID = id
			return t.keyMade(c, path, in, args)
		},
	}
	seal.flags(c.Flags())
	c.Flags().StringVar(&id, "key", "", "id of the key (default: the current one)")
	return c
}

func remoteKeyUnlock(t *talk) *cobra.Command {
	var open openFlags
	c := &cobra.Command{
		Use: "unlock VOLUME [REMOTE]", Short: "Bring the keys of a remote to the volume's node",
		Long: `Open the keys that a remote keeps, with a passphrase or an age identity, and keep
them on the volume's node. A recovery copy brings a key of which the remote keeps
nothing. Clone and remote add take the same flags.`,
		Example: "  drover remote key unlock pg --identity-file /root/age.key\n  drover remote key unlock pg origin --recovery-file /mnt/usb/pg.key",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keysPath(args, "/unlock")
			if err != nil {
				return err
			}
			in, err := open.read()
			if err != nil {
				return err
			}
			if in == (api.OpenKey{}) {
				if in.Passphrase, err = passphrase(c, false); err != nil {
					return err
				}
			}
			var list []api.RemoteKey
			if err := t.do(c.Context(), http.MethodPost, path, in, &list); err != nil {
				return err
			}
			return t.printKeys(c, list)
		},
	}
	open.flags(c.Flags())
	return c
}

func remoteKeyList(t *talk) *cobra.Command {
	return &cobra.Command{
		Use: "ls VOLUME [REMOTE]", Short: "List a remote's keys, and what opens them", Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keysPath(args, "")
			if err != nil {
				return err
			}
			list := []api.RemoteKey{}
			if err := t.do(c.Context(), http.MethodGet, path, nil, &list); err != nil {
				return err
			}
			return t.printKeys(c, list)
		},
	}
}

func (t *talk) printKeys(c *cobra.Command, list []api.RemoteKey) error {
	return t.print(c.OutOrStdout(), list, func(w *tabwriter.Writer) {
		row(w, "KEY", "USE", "HERE", "AT THE REMOTE OPENED BY")
		for _, k := range list {
			here, wrapped := "no", k.Wrapped
			switch {
			case k.Here:
				here = "yes"
			case k.Fault != "":
				here = "damaged"
			}
			if wrapped == "" {
				wrapped = "nothing: it is not kept there"
			}
			row(w, k.ID, k.Use, here, wrapped)
		}
		for _, k := range list {
			if k.Fault != "" {
				fmt.Fprintln(w, k.Fault)
			}
		}
	})
}

func remoteKeyExport(t *talk) *cobra.Command {
	var id, out string
	c := &cobra.Command{
		Use: "export VOLUME [REMOTE]", Short: "Write a recovery copy of a key",
		Long: `Write a key in clear, as a line that can be printed and typed in again. Keep it
where the remote is not: whoever has it reads everything that is sealed with it,
and without it or what opens the wrapped key nobody does. It takes the role admin,
and is an event.`,
		Example: "  drover remote key export pg --out /mnt/usb/pg.key",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keysPath(args, "/export?key="+url.QueryEscape(id))
			if err != nil {
				return err
			}
			var k api.KeyCopy
			if err := t.do(c.Context(), http.MethodPost, path, nil, &k); err != nil {
				return err
			}
			text := fmt.Sprintf("# Drover: key %s of remote %s of volume %s, %s\n# Whoever has the next line reads everything that is sealed with it.\n%s\n", k.ID, k.Remote, k.Volume, k.URL, k.Copy)
			if out != "" {
				if err := renameio.WriteFile(out, []byte(text), 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
					return &api.Error{Kind: api.Internal, Op: "write recovery copy", Object: out, Err: err}
				}
				// What else is shown has no secret in it.
				k.Copy = ""
				return t.print(c.OutOrStdout(), k, func(w *tabwriter.Writer) {
					fmt.Fprintf(w, "key %s is in %s: move it to a safe place\n", k.ID, out)
				})
			}
			return t.print(c.OutOrStdout(), k, func(w *tabwriter.Writer) { fmt.Fprint(w, text) })
		},
	}
	c.Flags().StringVar(&id, "key", "", "id of the key (default: the current one)")
	c.Flags().StringVar(&out, "out", "", "file to write it to, mode 0600 (default: standard output)")
	return c
}

func remoteKeyRemove(t *talk) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm VOLUME REMOTE KEY", Short: "Forget an old key, on the volume's node and at the remote",
		Long: `Forget a key that seals nothing any more. It is refused while commits at the
remote are sealed with it: --force makes those unreadable for good.`,
		Example: "  drover remote key rm pg backup 4f1d0a93c2e85b76",
		Args:    cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keysPath(args, "/"+url.PathEscape(args[2]))
			if err != nil {
				return err
			}
			if force {
				path += "?force=true"
			}
			return t.do(c.Context(), http.MethodDelete, path, nil, nil)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "although commits are sealed with it: nobody can read them any more")
	return c
}
