import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

import { App } from "./app.ts";

interface Settings {
  issuer_url: string;
  client_id: string;
  client_secret: string;
  control_url: string;
  keys: { key_id: string; key: string; org_code: string; status: string }[];
}

let emulator: ChildProcess;
let settings: Settings;
let app: App;

before(async () => {
  const program = process.env.ORGKEY ?? "orgkey";
  emulator = spawn(program, ["emulator", "--listen", "127.0.0.1:0", "--json"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  // The line is printed when the emulator serves.
  const [line] = await once(createInterface({ input: emulator.stdout! }), "line");
  settings = JSON.parse(line as string);
  app = new App(settings.issuer_url, settings.client_id, settings.client_secret);
});

after(async () => {
  emulator.kill();
  await once(emulator, "exit");
});

async function control(path: string, body: object): Promise<Record<string, string>> {
  const reply = await fetch(settings.control_url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.ok(reply.ok, await reply.clone().text());
  return (await reply.json()) as Record<string, string>;
}

test("a revoked key is rejected", async () => {
  const issued = await control("/keys", { org_code: "org_2" });
  assert.equal(await app.organizationOf(issued.key), "org_2");
  await control("/keys/revoke", { key_id: issued.key_id });
  assert.equal(await app.organizationOf(issued.key), undefined);
});

test("a failure of the issuer is no answer", async () => {
  await control("/faults", { at: "verify", fault: { status: 503 }, times: 1 });
  await assert.rejects(app.organizationOf(settings.keys[0].key));
});
