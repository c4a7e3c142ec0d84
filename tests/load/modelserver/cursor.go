package main

import (
	"io"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// cursor reads a message that lies in pieces, without putting them together.
type cursor struct {
	pieces mem.BufferSlice
	piece  []byte // what is left of the first piece
	left   int    // bytes of the message that is being read
}

func newCursor(pieces mem.BufferSlice) *cursor {
	return &cursor{pieces: pieces, left: pieces.Len()}
}

// fill makes sure that there is at least one byte.
func (c *cursor) fill() error {
	for len(c.piece) == 0 {
		if len(c.pieces) == 0 {
			return io.ErrUnexpectedEOF
		}
		c.piece, c.pieces = c.pieces[0].ReadOnlyData(), c.pieces[1:]
	}
	return nil
}

func (c *cursor) byte() (byte, error) {
	if c.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if err := c.fill(); err != nil {
		return 0, err
	}
	b := c.piece[0]
	c.piece = c.piece[1:]
	c.left--
	return b, nil
}

func (c *cursor) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b, err := c.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}

func (c *cursor) skip(n int) error {
	if n < 0 || n > c.left {
		return io.ErrUnexpectedEOF
	}
	c.left -= n
	for n > 0 {
		if err := c.fill(); err != nil {
			return err
		}
		step := min(n, len(c.piece))
		c.piece = c.piece[step:]
		n -= step
	}
	return nil
}

func (c *cursor) read(into []byte) error {
	if len(into) > c.left {
		return io.ErrUnexpectedEOF
	}
	c.left -= len(into)
	for len(into) > 0 {
		if err := c.fill(); err != nil {
			return err
		}
		n := copy(into, c.piece)
		c.piece, into = c.piece[n:], into[n:]
	}
	return nil
}

// rest reads what is left: in a field, its whole value.
func (c *cursor) rest() ([]byte, error) {
	rest := make([]byte, c.left)
	return rest, c.read(rest)
}

// fields calls do for each field of the message. The value is a varint's, or a length; of a field with a length the
// cursor is at its beginning and sees no further than its end, and what do leaves unread is skipped.
func (c *cursor) fields(do func(number protowire.Number, value uint64) error) error {
	for c.left > 0 {
		tag, err := c.varint()
		if err != nil {
			return err
		}
		number, kind := protowire.DecodeTag(tag)
		var value uint64
		length := 0
		switch kind {
		case protowire.VarintType:
			value, err = c.varint()
		case protowire.BytesType:
			value, err = c.varint()
			length = int(min(value, 1<<40))
		case protowire.Fixed32Type:
			length = 4
		case protowire.Fixed64Type:
			length = 8
		default:
			err = io.ErrUnexpectedEOF
		}
		if err != nil || length > c.left {
			return io.ErrUnexpectedEOF
		}
		after := c.left - length
		c.left = length
		if err := do(number, value); err != nil {
			return err
		}
		if err := c.skip(c.left); err != nil {
			return err
		}
		c.left = after
	}
	return nil
}
