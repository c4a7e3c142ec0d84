package main

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/jpeg"
	"math/rand/v2"
	"time"
)

// hostilePhotos are small files, or files within the gateway's limit of bytes, that cost much to open or to decode.
var hostilePhotos = []struct {
	kind, mediaType string
	make            func() []byte
}{
	{"pixels", "image/png", func() []byte { return png(20000, 20000, part("IDAT", deflated(24<<20))) }},
	{"text", "image/png", func() []byte {
		text := part("zTXt", append([]byte("a\x00\x00"), deflated(16<<20)...))
		return png(100, 100, text, part("IDAT", deflated(100*301)))
	}},
	{"thin", "image/png", func() []byte { return png(1, 52_428_800, part("IDAT", deflated(4*52_428_800))) }},
	{"scans", "image/jpeg", func() []byte { return manyScans(8192, 6144, 6000) }},
	{"runs", "image/bmp", runLength},
	{"segments", "image/jpeg", func() []byte {
		return append([]byte("\xff\xd8"), bytes.Repeat([]byte("\xff\xe5\x00\x04ab"), 3_300_000)...)
	}},
	{"chunks", "image/png", func() []byte {
		return png(8, 8, bytes.Repeat(part("teSt", nil), 1_600_000), part("IDAT", deflated(8*25)))
	}},
	{"profiles", "image/png", func() []byte {
		profile := part("iCCP", append([]byte("a\x00\x00"), deflated(1<<20)...))
		return png(8, 8, bytes.Repeat(profile, 19_000), part("IDAT", deflated(8*25)))
	}},
	{"comments", "image/gif", func() []byte {
		head := []byte("GIF89a\x08\x00\x08\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff\x21\xfe")
		return append(append(head, bytes.Repeat([]byte("\x01a"), 10_000_000)...), 0, 0x3b)
	}},
}

// costlyPhotos are valid and within every limit; pause is how long a connection waits before it is made again.
var costlyPhotos = []struct {
	kind, mediaType string
	pause           time.Duration
	make            func() []byte
}{
	{"costly", "image/png", pause / 10, func() []byte { return interlaced(8192, 6144, 1, 0, 1) }},
	{"deep", "image/png", pause / 10, func() []byte { return interlaced(8192, 6144, 16, 6, 4) }},
	{"refined", "image/jpeg", pause / 10, func() []byte { return manyScans(8192, 6144, 24) }},
	{"middle", "image/png", pause / 10, func() []byte { return interlaced(1600, 1200, 8, 2, 3) }},
	{"large", "image/jpeg", pause, noise},
}

// png is a picture of 8-bit RGB that claims this size, with these chunks.
func png(width, height uint32, parts ...[]byte) []byte {
	return pngOf(width, height, 8, 2, 0, parts...)
}

func pngOf(width, height uint32, depth, colour, interlace byte, parts ...[]byte) []byte {
	size := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, width), height)
	photo := append([]byte("\x89PNG\r\n\x1a\n"), part("IHDR", append(size, depth, colour, 0, 0, interlace))...)
	return append(append(photo, bytes.Join(parts, nil)...), part("IEND", nil)...)
}

// interlaced is a black PNG in Adam7's seven passes (PNG, third edition, section 8.2).
func interlaced(width, height, depth, colour, channels int) []byte {
	passes := [7][4]int{{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}}
	count := 0
	for _, pass := range passes {
		columns := (width - pass[0] + pass[2] - 1) / pass[2]
		rows := (height - pass[1] + pass[3] - 1) / pass[3]
		count += rows * (1 + (columns*channels*depth+7)/8)
	}
	return pngOf(uint32(width), uint32(height), byte(depth), byte(colour), 1, part("IDAT", deflated(count)))
}

// noise is a plain JPEG of 18 MB.
func noise() []byte {
	photo := image.NewYCbCr(image.Rect(0, 0, 4000, 3000), image.YCbCrSubsampleRatio420)
	random := rand.NewChaCha8([32]byte{})
	random.Read(photo.Y)
	random.Read(photo.Cb)
	random.Read(photo.Cr)
	var coded bytes.Buffer
	jpeg.Encode(&coded, photo, &jpeg.Options{Quality: 90})
	return coded.Bytes()
}

// part is a PNG chunk.
func part(name string, content []byte) []byte {
	named := append([]byte(name), content...)
	out := binary.BigEndian.AppendUint32(nil, uint32(len(content)))
	return binary.BigEndian.AppendUint32(append(out, named...), crc32.ChecksumIEEE(named))
}

// deflated is this many zeros, compressed a thousand to one.
func deflated(count int) []byte {
	var packed bytes.Buffer
	writer := zlib.NewWriter(&packed)
	writer.Write(make([]byte, count))
	writer.Close()
	return packed.Bytes()
}

// segment is a JPEG marker segment.
func segment(marker byte, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0xff, marker}, uint16(len(content)+2)), content...)
}

// manyScans is a progressive grey JPEG whose scans hold only "end of band for 16,384 blocks" (T.81, G.1.2.2): a decoder visits
// each block for each of them.
func manyScans(width, height, scans int) []byte {
	photo := []byte("\xff\xd8")
	photo = append(photo, segment(0xdb, append([]byte{0}, bytes.Repeat([]byte{1}, 64)...))...)
	size := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16([]byte{8}, uint16(height)), uint16(width))
	photo = append(photo, segment(0xc2, append(size, 1, 1, 0x11, 0))...)
	// One AC table: the code 0 is EOBRUN of 2^14 and 14 more bits, the code 10 is the end of one block.
	counts := append([]byte{0x10, 1, 1}, make([]byte, 14)...)
	photo = append(photo, segment(0xc4, append(counts, 0xe0, 0x00))...)
	var bits []byte
	put := func(value, count int) {
		for ; count > 0; count-- {
			bits = append(bits, byte(value>>(count-1)&1))
		}
	}
	for left := (width + 7) / 8 * ((height + 7) / 8); left > 0; {
		if run := min(left, 1<<15-1); run >= 1<<14 {
			put(0, 1)
			put(run-1<<14, 14)
			left -= run
		} else {
			put(2, 2)
			left--
		}
	}
	for len(bits)%8 != 0 {
		bits = append(bits, 1)
	}
	scan := segment(0xda, []byte{1, 1, 0, 1, 63, 0})
	for at := 0; at < len(bits); at += 8 {
		var one byte
		for _, bit := range bits[at : at+8] {
			one = one<<1 | bit
		}
		if scan = append(scan, one); one == 0xff {
			scan = append(scan, 0)
		}
	}
	return append(append(photo, bytes.Repeat(scan, scans)...), 0xff, 0xd9)
}

// runLength is a BMP (BI_RLE8) of 52,428,800 x 1 pixels: one pixel, then "end of line".
func runLength() []byte {
	data := []byte{1, 5, 0, 0, 0, 1}
	palette := make([]byte, 1024)
	offset := 14 + 40 + len(palette)
	photo := binary.LittleEndian.AppendUint32([]byte("BM"), uint32(offset+len(data)))
	for _, value := range []uint32{0, uint32(offset), 40, 52_428_800, 1} {
		photo = binary.LittleEndian.AppendUint32(photo, value)
	}
	photo = append(photo, 1, 0, 8, 0) // planes, bits a pixel
	for _, value := range []uint32{1, uint32(len(data)), 2835, 2835, 256, 0} {
		photo = binary.LittleEndian.AppendUint32(photo, value)
	}
	return append(append(photo, palette...), data...)
}
