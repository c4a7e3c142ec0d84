// Command loadgen is a closed loop of clients: each sends a photo, waits for the answer, looks whether it is right, and
// sends the next, over a connection that is kept alive where the server keeps it.
//
//	loadgen -target http://127.0.0.1:9696/predict -photos photos.json -form raw -clients 8 -seconds 3
//
// photos.json lists the photos: [{"path", "url", "scores": [ten numbers]}, …]. The forms are
//
//	url        -body, in which {url} stands for the photo's address, as application/json
//	base64     -body, in which {base64} stands for the photo, as application/json
//	raw        the photo's bytes as image/jpeg
//	multipart  a form with the photo in the field -field
//
// What it measured goes to stdout as JSON: every latency, in microseconds, by status. With neither -requests nor -seconds
// it goes on until SIGTERM, and says on stderr every second how far it is.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Where nothing listens an attempt takes no time: without a pause it would be tried a million times a second.
const connectPause = 50 * time.Millisecond

var labels = []string{"dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"}

type photo struct {
	Path   string    `json:"path"`
	URL    string    `json:"url"`
	Scores []float32 `json:"scores"`

	request []byte // the whole request, as it goes out
}

// result is what one client saw, and in the end what all saw.
type result struct {
	Seconds     float64            `json:"seconds"`
	Requests    int                `json:"requests"`
	Statuses    map[string]int     `json:"statuses"`
	Wrong       int                `json:"wrong"`
	FirstWrong  string             `json:"first_wrong,omitempty"`
	Errors      map[string]int     `json:"errors"`
	Silent      int                `json:"without_retry_after"` // 503s that don't say when to come again
	Connections int                `json:"connections"`
	Counted     map[string]int     `json:"counted,omitempty"` // 200s by what they have in the header -count
	Latencies   map[string][]int64 `json:"latencies_us"`
	Answered    []int64            `json:"answered_ms,omitempty"` // when each 200 came, since the start
	CPUSeconds  float64            `json:"loadgen_cpu_seconds"`
}

func newResult() *result {
	return &result{Statuses: map[string]int{}, Errors: map[string]int{}, Counted: map[string]int{}, Latencies: map[string][]int64{}}
}

func (r *result) add(other *result) {
	r.Requests += other.Requests
	r.Wrong += other.Wrong
	r.Silent += other.Silent
	r.Connections += other.Connections
	r.Answered = append(r.Answered, other.Answered...)
	if r.FirstWrong == "" {
		r.FirstWrong = other.FirstWrong
	}
	for status, count := range other.Statuses {
		r.Statuses[status] += count
		r.Latencies[status] = append(r.Latencies[status], other.Latencies[status]...)
	}
	for words, count := range other.Errors {
		r.Errors[words] += count
	}
	for value, count := range other.Counted {
		r.Counted[value] += count
	}
}

type load struct {
	address   string
	photos    []photo
	answer    []string
	tolerance float64
	timeout   time.Duration
	limit     int64
	keep      int
	pause     time.Duration
	patient   bool
	count     string
	moments   bool
	start     time.Time
	end       context.Context
	next      atomic.Int64
	failed    atomic.Int64
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("loadgen: ")
	target := flag.String("target", "", "`URL` that photos are sent to")
	list := flag.String("photos", "", "JSON `file` with the photos")
	form := flag.String("form", "raw", "how photos are sent: url, base64, raw, multipart")
	body := flag.String("body", `{"url": "{url}"}`, "JSON of the forms url and base64")
	field := flag.String("field", "image", "`name` of the form's field")
	host := flag.String("host", "", "Host `name` to ask for, where it isn't the target's")
	header := flag.String("header", "", "a further `header`, as \"Name: value\"")
	answer := flag.String("answer", "", "`path` to the object {label: score} in the answer, as in predictions.0; empty: the answer itself")
	clients := flag.Int("clients", 1, "how many at the same time")
	requests := flag.Int64("requests", 0, "how many in all; 0: as many as fit into -seconds")
	seconds := flag.Float64("seconds", 0, "for how long; 0: until -requests are sent, or until SIGTERM")
	keep := flag.Int("keep", 0, "how many requests go over one connection; 0: as many as the server takes")
	patient := flag.Bool("patient", false, "wait as long as a 503's Retry-After says")
	pause := flag.Duration("pause", 0, "how long a client waits between an answer and its next photo")
	count := flag.String("count", "", "`name` of a header by whose values the answers are counted")
	tolerance := flag.Float64("tolerance", 0, "how far a score may be from the expected one")
	moments := flag.Bool("moments", false, "say when each answer came, too")
	timeout := flag.Duration("timeout", time.Minute, "how long one answer may take")
	flag.Parse()

	parsed, err := url.Parse(*target)
	if err != nil || parsed.Scheme != "http" || parsed.Host == "" {
		log.Fatalf("-target %q is no http://host:port/path", *target)
	}
	address := parsed.Host
	if parsed.Port() == "" {
		address = net.JoinHostPort(parsed.Hostname(), "80")
	}
	if *host != "" {
		parsed.Host = *host
	}
	if *clients < 1 {
		log.Fatal("-clients: at least one")
	}
	l := &load{address: address, timeout: *timeout, limit: *requests, keep: *keep, pause: *pause, patient: *patient, count: *count, tolerance: *tolerance, moments: *moments}
	if *answer != "" {
		l.answer = strings.Split(*answer, ".")
	}
	if l.photos, err = read(*list); err != nil {
		log.Fatal(err)
	}
	for i := range l.photos {
		if err := l.photos[i].prepare(parsed, *form, *body, *field, *header); err != nil {
			log.Fatal(err)
		}
	}

	total := newResult()
	results := make([]*result, *clients)
	var group sync.WaitGroup
	end, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *seconds > 0 {
		end, stop = context.WithTimeout(end, time.Duration(*seconds*float64(time.Second)))
		defer stop()
	} else if *requests == 0 {
		go l.progress()
	}
	l.start, l.end = time.Now(), end
	for i := range results {
		results[i] = newResult()
		group.Go(func() { l.client(results[i]) })
	}
	group.Wait()
	total.Seconds = time.Since(l.start).Seconds()
	for _, one := range results {
		total.add(one)
	}
	slices.Sort(total.Answered)
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) == nil {
		total.CPUSeconds = time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
	}
	if err := json.NewEncoder(os.Stdout).Encode(total); err != nil {
		log.Fatal(err)
	}
}

func read(list string) ([]photo, error) {
	data, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	var photos []photo
	if err := json.Unmarshal(data, &photos); err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	if len(photos) == 0 {
		return nil, fmt.Errorf("%s lists no photos", list)
	}
	for _, photo := range photos {
		if len(photo.Scores) != len(labels) {
			return nil, fmt.Errorf("%s: %s has %d scores, not %d", list, photo.Path, len(photo.Scores), len(labels))
		}
	}
	return photos, nil
}

// prepare builds the request once, so that sending it costs next to nothing.
func (p *photo) prepare(target *url.URL, form, body, field, header string) error {
	var content []byte
	kind := "application/json"
	switch form {
	case "url":
		content = []byte(strings.ReplaceAll(body, "{url}", p.URL))
	case "raw", "base64", "multipart":
		data, err := os.ReadFile(p.Path)
		if err != nil {
			return err
		}
		switch form {
		case "raw":
			kind, content = "image/jpeg", data
		case "base64":
			content = []byte(strings.ReplaceAll(body, "{base64}", base64.StdEncoding.EncodeToString(data)))
		case "multipart":
			const boundary = "photo-photo-photo-photo"
			kind = "multipart/form-data; boundary=" + boundary
			var form bytes.Buffer
			fmt.Fprintf(&form, "--%s\r\nContent-Disposition: form-data; name=%q; filename=%q\r\nContent-Type: image/jpeg\r\n\r\n", boundary, field, filepath.Base(p.Path))
			form.Write(data)
			fmt.Fprintf(&form, "\r\n--%s--\r\n", boundary)
			content = form.Bytes()
		}
	default:
		return fmt.Errorf("-form %q is none of url, base64, raw, multipart", form)
	}
	var request bytes.Buffer
	fmt.Fprintf(&request, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", target.RequestURI(), target.Host, kind, len(content))
	if header != "" {
		fmt.Fprintf(&request, "%s\r\n", header)
	}
	request.WriteString("\r\n")
	request.Write(content)
	p.request = request.Bytes()
	return nil
}

// progress says every second how many requests were begun and how many have failed.
func (l *load) progress() {
	for range time.Tick(time.Second) {
		fmt.Fprintln(os.Stderr, l.next.Load(), l.failed.Load())
	}
}

// client sends one photo after the other until the load ends.
func (l *load) client(seen *result) {
	var conn net.Conn
	var reader *bufio.Reader
	carried := 0 // requests that went over this connection
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for {
		number := l.next.Add(1) - 1
		if l.limit > 0 && number >= l.limit || l.end.Err() != nil {
			return
		}
		photo := &l.photos[number%int64(len(l.photos))]
		start := time.Now()
		status, body, header, closed, err := 0, []byte(nil), http.Header(nil), true, error(nil)
		if conn == nil {
			if conn, err = net.DialTimeout("tcp", l.address, l.timeout); err == nil {
				reader = bufio.NewReader(conn)
				seen.Connections++
				carried = 0
			}
		}
		if err == nil {
			conn.SetDeadline(start.Add(l.timeout))
			status, body, header, closed, err = exchange(conn, reader, photo.request)
			carried++
			closed = closed || carried == l.keep
		}
		latency := time.Since(start)
		seen.Requests++
		if err != nil || status != http.StatusOK {
			l.failed.Add(1)
		}
		if err != nil {
			seen.Errors[cause(err)]++
		} else {
			key := strconv.Itoa(status)
			seen.Statuses[key]++
			seen.Latencies[key] = append(seen.Latencies[key], latency.Microseconds())
			if status == http.StatusServiceUnavailable && header.Get("Retry-After") == "" {
				seen.Silent++
			}
			if status == http.StatusOK {
				if l.count != "" {
					seen.Counted[header.Get(l.count)]++
				}
				if l.moments {
					seen.Answered = append(seen.Answered, time.Since(l.start).Milliseconds())
				}
				if words := l.compare(body, photo); words != "" {
					seen.Wrong++
					l.failed.Add(1)
					if seen.FirstWrong == "" {
						seen.FirstWrong = words
					}
				}
			} else if status < http.StatusInternalServerError && seen.FirstWrong == "" {
				seen.FirstWrong = fmt.Sprintf("%s: %d %.300s", filepath.Base(photo.Path), status, body)
			}
		}
		if conn == nil {
			time.Sleep(connectPause)
		} else if closed {
			conn.Close()
			conn = nil
		}
		wait := l.pause
		if seconds, bad := strconv.Atoi(header.Get("Retry-After")); l.patient && bad == nil {
			wait = max(wait, time.Duration(seconds)*time.Second)
		}
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-l.end.Done():
			}
		}
	}
}

// exchange sends a request and reads its answer. A server may answer and close before it has read a whole upload: then
// the answer counts, not the broken pipe.
func exchange(conn net.Conn, reader *bufio.Reader, request []byte) (status int, body []byte, header http.Header, closed bool, err error) {
	_, sending := conn.Write(request)
	response, err := http.ReadResponse(reader, nil)
	for err == nil && response.StatusCode == http.StatusContinue {
		response, err = http.ReadResponse(reader, nil)
	}
	if err != nil {
		if sending != nil {
			err = sending
		}
		return 0, nil, nil, true, err
	}
	body, err = io.ReadAll(response.Body)
	response.Body.Close()
	return response.StatusCode, body, response.Header, response.Close || sending != nil, err
}

// cause is an error in words without addresses, so that equal ones count together.
func cause(err error) string {
	during := ""
	for {
		if operation, is := err.(*net.OpError); is {
			during = operation.Op + ": " // dial, read, write: whether it was sent at all
		}
		inner, wrapped := err.(interface{ Unwrap() error })
		if !wrapped || inner.Unwrap() == nil {
			return during + err.Error()
		}
		err = inner.Unwrap()
	}
}

// compare says what is wrong with an answer; nothing where it has the scores that were expected.
func (l *load) compare(body []byte, photo *photo) string {
	name := filepath.Base(photo.Path)
	var answer any
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Sprintf("%s: %v in %.300q", name, err, body)
	}
	for _, step := range l.answer {
		switch inner := answer.(type) {
		case map[string]any:
			answer = inner[step]
		case []any:
			index, err := strconv.Atoi(step)
			if err != nil || index >= len(inner) {
				return fmt.Sprintf("%s: no %s in %.300q", name, step, body)
			}
			answer = inner[index]
		}
	}
	scores, is := answer.(map[string]any)
	if !is || len(scores) != len(labels) {
		return fmt.Sprintf("%s: no ten labels in %.300q", name, body)
	}
	for i, label := range labels {
		// Scores travel as float32: that is what must be equal, however many digits are written.
		score, is := scores[label].(float64)
		if !is || !(math.Abs(float64(float32(score)-photo.Scores[i])) <= l.tolerance) {
			return fmt.Sprintf("%s: %s is %v, not %v", name, label, scores[label], photo.Scores[i])
		}
	}
	return ""
}
