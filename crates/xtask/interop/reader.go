// Reads a log of Exchequer with the packages of Go's checksum database (golang.org/x/mod/sumdb) alone: it shares no code with the
// project. Usage: reader KIT SOURCE, where SOURCE is the log's URL or directory.
//
// It verifies the checkpoint and its type-04 cosignature, earlier checkpoints' consistency, entries' inclusion, tlog-proof files, and
// that a changed byte in any of them is refused. Exit status 0 only if all of that holds.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func must(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

func require(holds bool, what string) {
	if !holds {
		must(fmt.Errorf("does not hold"), what)
	}
}

func changed(data []byte, at int) []byte {
	other := append([]byte(nil), data...)
	other[at] ^= 1
	return other
}

// matters is false for the last character before base64's padding, of which decoders ignore the last bits.
func matters(data []byte, at int) bool {
	return at+1 == len(data) || data[at+1] != '='
}

// A source returns the log's file of this name.
type source func(name string) ([]byte, error)

func open(where string) source {
	if !strings.HasPrefix(where, "http") {
		return func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(where, name)) }
	}
	return func(name string) ([]byte, error) {
		answer, err := http.Get(where + "/" + name)
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", name, answer.Status)
		}
		return body, err
	}
}

// tampered flips a bit of every file whose name begins with prefix.
func tampered(from source, prefix string) source {
	return func(name string) ([]byte, error) {
		data, err := from(name)
		if err == nil && strings.HasPrefix(name, prefix) && len(data) > 0 {
			data = append([]byte(nil), data...)
			data[len(data)/2] ^= 1
		}
		return data, err
	}
}

// tiles reads hash tiles. C2SP's paths have no height in them.
type tiles struct{ from source }

func (t tiles) Height() int { return 8 }

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (t tiles) ReadTiles(asked []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range asked {
		data, err := t.from("tile/" + strings.TrimPrefix(tile.Path(), "tile/8/"))
		if err != nil {
			// A partial tile may be gone once the full one exists.
			full := tile
			full.W = 256
			if data, err = t.from("tile/" + strings.TrimPrefix(full.Path(), "tile/8/")); err != nil {
				return nil, err
			}
			data = data[:tile.W*tlog.HashSize]
		}
		all = append(all, data)
	}
	return all, nil
}

// cosigner verifies timestamped cosignatures (type 04) as c2sp.org/tlog-cosignature defines them.
type cosigner struct {
	name string
	key  ed25519.PublicKey
}

func (c cosigner) Name() string { return c.name }

func (c cosigner) KeyHash() uint32 {
	sum := sha256.Sum256(append([]byte(c.name+"\n\x04"), c.key...))
	return binary.BigEndian.Uint32(sum[:])
}

func (c cosigner) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	time := binary.BigEndian.Uint64(signature)
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", time, text)
	return ed25519.Verify(c.key, []byte(message), signature[8:])
}

func parseTree(text string) (tlog.Tree, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 {
		return tlog.Tree{}, fmt.Errorf("a checkpoint of %d lines", len(lines))
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	hash, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: hash}, err
}

func checkpoint(data []byte, verifiers note.Verifiers) (tlog.Tree, int, error) {
	signed, err := note.Open(data, verifiers)
	if err != nil {
		return tlog.Tree{}, 0, err
	}
	tree, err := parseTree(signed.Text)
	return tree, len(signed.Sigs), err
}

// entry reads one entry out of its bundle.
func entry(from source, size, index int64) ([]byte, error) {
	tile := tlog.Tile{H: 8, L: 0, N: index / 256, W: 256}
	if size/256 == tile.N {
		tile.W = int(size % 256)
	}
	data, err := from("tile/entries/" + strings.TrimPrefix(tile.Path(), "tile/8/0/"))
	for place := int64(0); err == nil; place++ {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("the bundle of entry %d ends early", index)
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		if place == index%256 {
			return data[2:end], nil
		}
		data = data[end:]
	}
	return nil, err
}

// included proves that the entry that the source serves at this index is in the tree.
func included(from source, tree tlog.Tree, index int64) error {
	data, err := entry(from, tree.N, index)
	if err != nil {
		return err
	}
	proof, err := tlog.ProveRecord(tree.N, index, tlog.TileHashReader(tree, tiles{from}))
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(data))
}

func consistent(from source, old, tree tlog.Tree) error {
	proof, err := tlog.ProveTree(tree.N, old.N, tlog.TileHashReader(tree, tiles{from}))
	if err != nil {
		return err
	}
	return tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash)
}

// proven checks a tlog-proof file against the entry.
func proven(file []byte, data []byte, verifiers note.Verifiers) error {
	head, rest, found := bytes.Cut(file, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return fmt.Errorf("not a tlog-proof")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	tree, _, err := checkpoint(rest, verifiers)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(data))
}

func kitFiles(kit, pattern string) []string {
	names, err := filepath.Glob(filepath.Join(kit, pattern))
	must(err, pattern)
	sort.Strings(names)
	require(len(names) > 1, "the kit has "+pattern)
	return names
}

func main() {
	require(len(os.Args) == 3, "usage: reader KIT SOURCE")
	kit, from := os.Args[1], open(os.Args[2])
	vkey, err := os.ReadFile(filepath.Join(kit, "vkey"))
	must(err, "vkey")
	log, err := note.NewVerifier(string(vkey))
	must(err, "vkey")
	key, err := base64.StdEncoding.DecodeString(strings.SplitN(string(vkey), "+", 3)[2])
	must(err, "vkey")
	witness := cosigner{log.Name(), key[1:]}
	verifiers := note.VerifierList(log, witness)

	newest, err := from("checkpoint")
	must(err, "checkpoint")
	tree, signatures, err := checkpoint(newest, verifiers)
	must(err, "the checkpoint's signatures")
	require(signatures == 2, "the checkpoint has the log's signature and its cosignature")
	text := bytes.LastIndex(newest, []byte("\n\n"))
	for at := range newest {
		if !matters(newest, at) {
			continue
		}
		_, count, err := checkpoint(changed(newest, at), verifiers)
		// A signature line with another name is of an unknown key; the other one holds.
		require(err != nil || (at > text && count < 2), fmt.Sprintf("a checkpoint with byte %d changed is refused", at))
	}

	earlier := 0
	for _, name := range kitFiles(kit, "checkpoint.*") {
		data, err := os.ReadFile(name)
		must(err, name)
		old, _, err := checkpoint(data, verifiers)
		must(err, name)
		must(consistent(from, old, tree), name+" and the newest checkpoint")
		forged := old
		forged.Hash[7] ^= 1
		require(consistent(from, forged, tree) != nil, "another root than "+name+" is refused")
		earlier++
	}

	indexes := []int64{0, 1, 2, 255, 256, 257, 511, 512, tree.N / 3, tree.N / 2, 65535, 65536, 65537, tree.N - 2, tree.N - 1}
	checked := 0
	for _, index := range indexes {
		if index >= tree.N {
			continue
		}
		must(included(from, tree, index), fmt.Sprintf("entry %d", index))
		for _, prefix := range []string{"tile/0/", "tile/1/", "tile/2/"} {
			if prefix == "tile/2/" && tree.N < 65536 || prefix == "tile/1/" && tree.N < 256 {
				continue
			}
			require(included(tampered(from, prefix), tree, index) != nil, fmt.Sprintf("entry %d under a changed %s is refused", index, prefix))
		}
		checked++
	}
	// The middle of the bundle is another entry's, so all of them are compared.
	bundle := tampered(from, "tile/entries/")
	refused := 0
	for index := int64(0); index < 256 && index < tree.N; index++ {
		if included(bundle, tree, index) != nil {
			refused++
		}
	}
	require(refused > 0, "a changed bundle of entries is refused")

	files := 0
	for _, name := range kitFiles(kit, "*.tlog-proof") {
		index, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(name), ".tlog-proof"), 10, 64)
		must(err, name)
		file, err := os.ReadFile(name)
		must(err, name)
		data, err := entry(from, tree.N, index)
		must(err, name)
		must(proven(file, data, verifiers), name)
		require(proven(file, append(data[:len(data):len(data)], 0), verifiers) != nil, "another entry than "+name+"'s is refused")
		for at := 0; at < bytes.Index(file, []byte("\n\n")); at += 3 {
			if !matters(file, at) {
				continue
			}
			require(proven(changed(file, at), data, verifiers) != nil, fmt.Sprintf("%s with byte %d changed is refused", name, at))
		}
		files++
	}
	fmt.Printf("go: %s: %d entries; %d earlier checkpoints, %d entries and %d tlog-proofs hold; every tampered copy is refused\n",
		os.Args[2], tree.N, earlier, checked, files)
}
