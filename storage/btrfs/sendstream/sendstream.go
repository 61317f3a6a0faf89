// Package sendstream decodes the btrfs send stream, protocol versions 1 and 2.
// It is pure: bytes in, commands out, in place and without allocation. What a
// command does to a file system, it does not know.
//
// The format: a header of 17 bytes (magic, version), then commands of a 10
// byte header (length of what follows, command, CRC-32C of the whole with the
// CRC field zero) and attributes (type, length, value), all little endian. In
// version 2 the data attribute is the last one and has no length. Source:
// fs/btrfs/send.h and send.c of Linux, and the btrfs documentation's page
// "Btrfs send stream format".
package sendstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Sizes of the fixed parts, and the longest command taken: the kernel's own
// are below 144 KiB plus attributes.
const (
	HeaderSize  = 17
	CommandSize = 10
	MaxCommand  = 4 << 20
)

const magic = "btrfs-stream\x00"

// Op is a command's code.
type Op uint16

// The commands.
const (
	Subvol       Op = 1
	Snapshot     Op = 2
	Mkfile       Op = 3
	Mkdir        Op = 4
	Mknod        Op = 5
	Mkfifo       Op = 6
	Mksock       Op = 7
	Symlink      Op = 8
	Rename       Op = 9
	Link         Op = 10
	Unlink       Op = 11
	Rmdir        Op = 12
	SetXattr     Op = 13
	RemoveXattr  Op = 14
	Write        Op = 15
	Clone        Op = 16
	Truncate     Op = 17
	Chmod        Op = 18
	Chown        Op = 19
	Utimes       Op = 20
	End          Op = 21
	UpdateExtent Op = 22 // only in streams without data
	Fallocate    Op = 23
	FileAttr     Op = 24
	EncodedWrite Op = 25
)

var names = [...]string{"", "subvol", "snapshot", "mkfile", "mkdir", "mknod", "mkfifo", "mksock", "symlink", "rename", "link", "unlink", "rmdir", "set_xattr", "remove_xattr", "write", "clone", "truncate", "chmod", "chown", "utimes", "end", "update_extent", "fallocate", "fileattr", "encoded_write"}

// String is the command's name in the kernel's source.
func (o Op) String() string {
	if int(o) < len(names) && o != 0 {
		return names[o]
	}
	return fmt.Sprintf("command %d", uint16(o))
}

// Attr is an attribute's code.
type Attr uint16

// The attributes.
const (
	UUID          Attr = 1
	CTransid      Attr = 2
	Ino           Attr = 3
	Size          Attr = 4
	Mode          Attr = 5
	UID           Attr = 6
	GID           Attr = 7
	Rdev          Attr = 8
	CTime         Attr = 9
	MTime         Attr = 10
	ATime         Attr = 11
	OTime         Attr = 12
	XattrName     Attr = 13
	XattrData     Attr = 14
	Path          Attr = 15
	PathTo        Attr = 16
	PathLink      Attr = 17
	FileOffset    Attr = 18
	Data          Attr = 19
	CloneUUID     Attr = 20
	CloneCTransid Attr = 21
	ClonePath     Attr = 22
	CloneOffset   Attr = 23
	CloneLen      Attr = 24
	FallocateMode Attr = 25
	attrs              = 26 // those above are of interest; later ones are skipped
)

// ErrStream is wrapped by every error of this package.
var ErrStream = errors.New("not a valid btrfs send stream")

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrStream}, args...)...)
}

// ParseHeader reads the stream's header from its first HeaderSize bytes and
// gives the protocol version.
func ParseHeader(b []byte) (uint32, error) {
	if len(b) < HeaderSize || string(b[:len(magic)]) != magic {
		return 0, bad("no magic number at its beginning")
	}
	v := binary.LittleEndian.Uint32(b[len(magic):])
	if v != 1 && v != 2 {
		return 0, bad("protocol version %d is not known", v)
	}
	return v, nil
}

// AppendHeader writes a header.
func AppendHeader(b []byte, version uint32) []byte {
	return binary.LittleEndian.AppendUint32(append(b, magic...), version)
}

// Command is one decoded command. Its values lie in the buffer it was read
// from and are valid as long as that is.
type Command struct {
	Op  Op
	val [attrs][]byte
	set uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Length gives the whole length of the command that begins with b, at least
// CommandSize bytes.
func Length(b []byte) (int, error) {
	n := binary.LittleEndian.Uint32(b)
	if n > MaxCommand {
		return 0, bad("a command of %d bytes", n)
	}
	return CommandSize + int(n), nil
}

// checksum is the CRC of a command with its own field taken as zero; the
// kernel's CRC-32C begins at 0 and is not inverted.
func checksum(b []byte) uint32 {
	var zero [4]byte
	c := crc32.Update(0xffffffff, castagnoli, b[:6])
	c = crc32.Update(c, castagnoli, zero[:])
	return ^crc32.Update(c, castagnoli, b[CommandSize:])
}

// Parse decodes b, which is one whole command, into c.
func (c *Command) Parse(b []byte, version uint32) error {
	c.Op = Op(binary.LittleEndian.Uint16(b[4:]))
	c.set = 0
	if want, got := binary.LittleEndian.Uint32(b[6:]), checksum(b); want != got {
		return bad("checksum of a %s command is %08x, should be %08x", c.Op, got, want)
	}
	for p := b[CommandSize:]; len(p) > 0; {
		if len(p) < 2 {
			return bad("a cut attribute in a %s command", c.Op)
		}
		a := Attr(binary.LittleEndian.Uint16(p))
		var v []byte
		if version >= 2 && a == Data {
			v, p = p[2:], nil
		} else {
			if len(p) < 4 {
				return bad("a cut attribute in a %s command", c.Op)
			}
			n := int(binary.LittleEndian.Uint16(p[2:]))
			if len(p) < 4+n {
				return bad("a cut attribute in a %s command", c.Op)
			}
			v, p = p[4:4+n], p[4+n:]
		}
		if a < attrs {
			c.val[a] = v
			c.set |= 1 << a
		}
	}
	return nil
}

// Has reports whether the command has the attribute.
func (c *Command) Has(a Attr) bool { return c.set&(1<<a) != 0 }

// Bytes is an attribute as it is.
func (c *Command) Bytes(a Attr) ([]byte, error) {
	if !c.Has(a) {
		return nil, bad("a %s command without attribute %d", c.Op, a)
	}
	return c.val[a], nil
}

// Uint is a number.
func (c *Command) Uint(a Attr) (uint64, error) {
	v, err := c.Bytes(a)
	switch {
	case err != nil:
		return 0, err
	case len(v) == 8:
		return binary.LittleEndian.Uint64(v), nil
	case len(v) == 4:
		return uint64(binary.LittleEndian.Uint32(v)), nil
	}
	return 0, bad("attribute %d of a %s command has %d bytes", a, c.Op, len(v))
}

// Time is seconds and nanoseconds.
func (c *Command) Time(a Attr) (sec int64, nsec int64, err error) {
	v, err := c.Bytes(a)
	if err != nil {
		return 0, 0, err
	}
	if len(v) != 12 {
		return 0, 0, bad("attribute %d of a %s command has %d bytes", a, c.Op, len(v))
	}
	return int64(binary.LittleEndian.Uint64(v)), int64(binary.LittleEndian.Uint32(v[8:])), nil
}

// ID is a UUID.
func (c *Command) ID(a Attr) (id [16]byte, err error) {
	v, err := c.Bytes(a)
	if err != nil {
		return id, err
	}
	if len(v) != len(id) {
		return id, bad("attribute %d of a %s command has %d bytes", a, c.Op, len(v))
	}
	return [16]byte(v), nil
}

// Field is an attribute to be written, for tests and tools.
type Field struct {
	Attr  Attr
	Value []byte
}

// AppendCommand encodes a command.
func AppendCommand(b []byte, version uint32, op Op, fields ...Field) []byte {
	at := len(b)
	b = append(b, make([]byte, CommandSize)...)
	for _, f := range fields {
		b = binary.LittleEndian.AppendUint16(b, uint16(f.Attr))
		if version < 2 || f.Attr != Data {
			b = binary.LittleEndian.AppendUint16(b, uint16(len(f.Value)))
		}
		b = append(b, f.Value...)
	}
	c := b[at:]
	binary.LittleEndian.PutUint32(c, uint32(len(c)-CommandSize))
	binary.LittleEndian.PutUint16(c[4:], uint16(op))
	binary.LittleEndian.PutUint32(c[6:], checksum(c))
	return b
}
