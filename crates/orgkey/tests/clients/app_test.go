package app

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"testing"
)

type settings struct {
	IssuerURL    string `json:"issuer_url"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	ControlURL   string `json:"control_url"`
	Keys         []struct {
		Key     string `json:"key"`
		OrgCode string `json:"org_code"`
		Status  string `json:"status"`
	} `json:"keys"`
}

// startEmulator runs an emulator on a free port until the test ends.
func startEmulator(t *testing.T) settings {
	t.Helper()
	program := os.Getenv("ORGKEY")
	if program == "" {
		program = "orgkey"
	}
	command := exec.Command(program, "emulator", "--listen", "127.0.0.1:0", "--json")
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		if err := command.Wait(); err != nil {
			t.Error(err)
		}
	})
	// The line is printed when the emulator serves.
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var emulator settings
	if err := json.Unmarshal(line, &emulator); err != nil {
		t.Fatal(err)
	}
	return emulator
}

// control calls an endpoint that issues and revokes keys, injects faults or moves the clock.
func (s settings) control(t *testing.T, path string, body any) map[string]any {
	t.Helper()
	encoded, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := http.Post(s.ControlURL+path, "application/json", bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	var answer map[string]any
	if err := json.NewDecoder(reply.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if reply.StatusCode >= 300 {
		t.Fatalf("%s: %d %v", path, reply.StatusCode, answer)
	}
	return answer
}

func TestRevokedKey(t *testing.T) {
	emulator := startEmulator(t)
	app := New(emulator.IssuerURL, emulator.ClientID, emulator.ClientSecret)

	issued := emulator.control(t, "/keys", map[string]any{"org_code": "org_2"})
	key := issued["key"].(string)
	if org, err := app.OrganizationOf(key); err != nil || org != "org_2" {
		t.Fatalf("organization %q, error %v", org, err)
	}
	emulator.control(t, "/keys/revoke", map[string]any{"key_id": issued["key_id"]})
	if org, err := app.OrganizationOf(key); err != nil || org != "" {
		t.Fatalf("organization %q, error %v", org, err)
	}
}

func TestIssuerFails(t *testing.T) {
	emulator := startEmulator(t)
	app := New(emulator.IssuerURL, emulator.ClientID, emulator.ClientSecret)

	fault := map[string]any{"at": "verify", "fault": map[string]any{"status": 503}}
	emulator.control(t, "/faults", fault)
	if org, err := app.OrganizationOf(emulator.Keys[0].Key); err == nil {
		t.Fatalf("organization %q", org)
	}
}
