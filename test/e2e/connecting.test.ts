import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { nkeys } from "@nats-io/nats-core";
import { afterAll, beforeAll, describe, it, vi } from "vitest";
import { type NatsServer, startNatsServer } from "../../src/testing/nats-server.ts";
import { bundleWorker } from "../support/bundle.ts";
import { makeCertificates } from "../support/certificates.ts";
import { makeOperator } from "../support/operator.ts";
import { startWrongServers, type WrongServers } from "../support/wrong-servers.ts";

// What Node and workerd tell of a server that cannot be had, with the secrets of its URL kept; and TLS of one's own.
const folder = await mkdtemp(join(tmpdir(), "sortie-connecting-"));
const [trusted, strange] = await Promise.all([certificates("trusted"), certificates("strange")]);
vi.stubEnv("NODE_EXTRA_CA_CERTS", trusted.ca); // which miniflare reads as it is loaded
const { Miniflare } = await import("miniflare");
vi.unstubAllEnvs();
let wrong: WrongServers;
let tls: NatsServer;
let worker: InstanceType<typeof Miniflare>;
const logs: string[] = [];

beforeAll(async () => {
  const { cert, key } = trusted;
  const config = `websocket { host: "127.0.0.1", port: -1, tls { cert_file: "${cert}", key_file: "${key}" } }`;
  wrong = await startWrongServers(strange);
  tls = await startNatsServer({ config });
  worker = new Miniflare({
    modules: true,
    script: await bundleWorker("connecting.ts"),
    compatibilityDate: "2026-07-30",
    host: "127.0.0.1",
    cf: false,
    structuredWorkerdLogs: true,
    handleStructuredLogs: ({ message }: { message: string }) => void logs.push(message),
  });
  await worker.ready;
});
afterAll(async () => {
  await Promise.all([worker?.dispose(), wrong?.[Symbol.asyncDispose](), tls?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

async function certificates(name: string) {
  const inside = join(folder, name);
  await mkdir(inside);
  return makeCertificates(inside);
}

const tlsUrl = () => tls.url.replace("ws:", "wss:");
const secrets = /s3cr3t|%40wrong|@wrong/;

describe.concurrent("in Node", () => {
  it("tells what is wrong with each, connects to one's own authority, and leaves no socket behind", async ({
    expect,
  }) => {
    const program = fileURLToPath(new URL("connecting-child.ts", import.meta.url));
    const child = spawn(process.execPath, [program, ...wrong.all.map(({ url }) => url), tlsUrl()], {
      env: { ...process.env, NODE_EXTRA_CA_CERTS: trusted.ca },
      stdio: ["pipe", "pipe", "inherit"],
    });
    const [line]: unknown[] = await once(child.stdout, "data");
    const outcomes = JSON.parse(`${line}`) as { reason: string; said: string }[];
    const told = wrong.all.map(({ name }, n) => ({ name, ...outcomes[n] }));
    expect(told).toEqual(
      wrong.all.map(({ name, reason, says }) => ({ name, reason, said: expect.stringMatching(says) })),
    );
    expect(outcomes.at(-1)).toEqual({ reason: "none", said: "connected" });
    expect(JSON.stringify(outcomes)).not.toMatch(secrets);
    await expect.poll(() => wrong.open()).toBe(0);
    child.stdin.end();
    await once(child, "exit"); // and nothing keeps it
  });
});

describe.concurrent("in workerd", () => {
  async function publish(settings: Record<string, string>): Promise<{ type: string; detail: string }> {
    const response = await fetch(await worker.ready, { method: "POST", body: JSON.stringify(settings) });
    return (await response.json()) as { type: string; detail: string };
  }

  it("tells what is wrong with each, and leaves no socket behind", async ({ expect }) => {
    const quick = wrong.all.filter(({ slow }) => !slow); // the others are in worker.test.ts
    // why is in the log, and nothing to callers; of one host one after the other, so that each has its line
    const byHost = Map.groupBy(quick, ({ url }) => new URL(url).host);
    const told = await Promise.all(
      [...byHost].map(async ([host, all]) => {
        const lines = () => logs.filter((line) => line.includes(host));
        const seen = [];
        for (const { name, url } of all) {
          const before = lines().length;
          const { type } = await publish({ NATS_URL: url });
          await vi.waitFor(() => expect(lines().length).toBeGreaterThan(before));
          seen.push({ name, type, why: lines().at(-1) });
        }
        return seen;
      }),
    );
    expect(told.flat()).toEqual(
      expect.arrayContaining(
        quick.map(({ name, says, workerdSays = says }) => ({
          name,
          type: "urn:sortie:problem:connection-failed",
          why: expect.stringMatching(workerdSays),
        })),
      ),
    );
    expect(JSON.stringify([told, logs])).not.toMatch(secrets);
    await expect.poll(() => wrong.open()).toBe(0);
  });

  it("logs in with a JWT and with an nkey, signed by its WebCrypto, and trusts one's own authority", async ({
    expect,
  }) => {
    const operator = makeOperator();
    const user = nkeys.createUser();
    await using byJwt = await startNatsServer(operator);
    await using byNkey = await startNatsServer({
      config: `authorization { users: [{ nkey: ${user.getPublicKey()} }] }`,
    });
    const missing = { type: "urn:sortie:problem:stream-missing" }; // it got in, and nothing is there
    expect(await publish({ NATS_URL: byJwt.url, NATS_CREDS: operator.creds() })).toMatchObject(missing);
    const seed = new TextDecoder().decode(user.getSeed());
    expect(await publish({ NATS_URL: byNkey.url, NATS_NKEY: seed })).toMatchObject(missing);
    expect(await publish({ NATS_URL: tlsUrl() })).toMatchObject(missing);
    const { detail } = await publish({ NATS_URL: byNkey.url, NATS_NKEY: seed.slice(0, -2) });
    expect(detail).toContain("NATS_NKEY is not as expected");
    await expect.poll(() => logs.join("\n")).toContain("NATS_NKEY: expected a user's seed");
    expect(`${detail}${logs.join()}`).not.toContain(seed.slice(2, 10));
  });
});
