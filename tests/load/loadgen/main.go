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
// What it measured goes to stdout as JSON: every latency, in microseconds, by status.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

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
	Connections int                `json:"connections"`
	Latencies   map[string][]int64 `json:"latencies_us"`
	CPUSeconds  float64            `json:"loadgen_cpu_seconds"`
}

func newResult() *result {
	return &result{Statuses: map[string]int{}, Errors: map[string]int{}, Latencies: map[string][]int64{}}
}

func (r *result) add(other *result) {
	r.Requests += other.Requests
	r.Wrong += other.Wrong
	r.Connections += other.Connections
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
}

type load struct {
	address string
	photos  []photo
	answer  []string
	timeout time.Duration
	limit   int64
	end     time.Time
	next    atomic.Int64
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("loadgen: ")
	target := flag.String("target", "", "`URL` that photos are sent to")
	list := flag.String("photos", "", "JSON `file` with the photos")
	form := flag.String("form", "raw", "how photos are sent: url, base64, raw, multipart")
	body := flag.String("body", `{"url": "{url}"}`, "JSON of the forms url and base64")
	field := flag.String("field", "image", "`name` of the form's field")
	header := flag.String("header", "", "a further `header`, as \"Name: value\"")
	answer := flag.String("answer", "", "`path` to the object {label: score} in the answer, as in predictions.0; empty: the answer itself")
	clients := flag.Int("clients", 1, "how many at the same time")
	requests := flag.Int64("requests", 0, "how many in all; 0: as many as fit into -seconds")
	seconds := flag.Float64("seconds", 0, "for how long; 0: until -requests are sent")
	timeout := flag.Duration("timeout", time.Minute, "how long one answer may take")
	flag.Parse()

	parsed, err := url.Parse(*target)
	if err != nil || parsed.Scheme != "http" || parsed.Host == "" {
		log.Fatalf("-target %q is no http://host:port/path", *target)
	}
	if *requests == 0 && *seconds == 0 || *clients < 1 {
		log.Fatal("say when to end with -requests or -seconds, and at least one client")
	}
	l := &load{address: parsed.Host, timeout: *timeout, limit: *requests}
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
	start := time.Now()
	if *seconds > 0 {
		l.end = start.Add(time.Duration(*seconds * float64(time.Second)))
	}
	for i := range results {
		results[i] = newResult()
		group.Go(func() { l.client(results[i]) })
	}
	group.Wait()
	total.Seconds = time.Since(start).Seconds()
	for _, one := range results {
		total.add(one)
	}
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

// client sends one photo after the other until the load ends.
func (l *load) client(seen *result) {
	var conn net.Conn
	var reader *bufio.Reader
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for {
		number := l.next.Add(1) - 1
		if l.limit > 0 && number >= l.limit || !l.end.IsZero() && !time.Now().Before(l.end) {
			return
		}
		photo := &l.photos[number%int64(len(l.photos))]
		start := time.Now()
		status, body, closed, err := 0, []byte(nil), true, error(nil)
		if conn == nil {
			if conn, err = net.DialTimeout("tcp", l.address, l.timeout); err == nil {
				reader = bufio.NewReader(conn)
				seen.Connections++
			}
		}
		if err == nil {
			conn.SetDeadline(start.Add(l.timeout))
			status, body, closed, err = exchange(conn, reader, photo.request)
		}
		latency := time.Since(start)
		seen.Requests++
		if err != nil {
			seen.Errors[cause(err)]++
		} else {
			key := strconv.Itoa(status)
			seen.Statuses[key]++
			seen.Latencies[key] = append(seen.Latencies[key], latency.Microseconds())
			if status == http.StatusOK {
				if words := l.compare(body, photo); words != "" {
					seen.Wrong++
					if seen.FirstWrong == "" {
						seen.FirstWrong = words
					}
				}
			} else if status < http.StatusInternalServerError && seen.FirstWrong == "" {
				seen.FirstWrong = fmt.Sprintf("%s: %d %.300s", filepath.Base(photo.Path), status, body)
			}
		}
		if closed && conn != nil {
			conn.Close()
			conn = nil
		}
	}
}

// exchange sends a request and reads its answer. A server may answer and close before it has read a whole upload: then
// the answer counts, not the broken pipe.
func exchange(conn net.Conn, reader *bufio.Reader, request []byte) (status int, body []byte, closed bool, err error) {
	_, sending := conn.Write(request)
	response, err := http.ReadResponse(reader, nil)
	for err == nil && response.StatusCode == http.StatusContinue {
		response, err = http.ReadResponse(reader, nil)
	}
	if err != nil {
		if sending != nil {
			err = sending
		}
		return 0, nil, true, err
	}
	body, err = io.ReadAll(response.Body)
	response.Body.Close()
	return response.StatusCode, body, response.Close || sending != nil, err
}

// cause is an error in words without addresses, so that equal ones count together.
func cause(err error) string {
	for {
		inner, wrapped := err.(interface{ Unwrap() error })
		if !wrapped || inner.Unwrap() == nil {
			return err.Error()
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
		if score, is := scores[label].(float64); !is || float32(score) != photo.Scores[i] {
			return fmt.Sprintf("%s: %s is %v, not %v", name, label, scores[label], photo.Scores[i])
		}
	}
	return ""
}
