import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { app } from "../../functions/app.ts";
import { type LocalWorker, startWorker } from "../../scripts/worker.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { freePort, type Monitoring, monitoring } from "../support/monitoring.ts";
import { startPeer, upgradesOnly } from "../support/peers.ts";
import { programOf } from "../support/servers.ts";
import { type System, startSystem } from "../support/system.ts";

// The bundle that `wrangler deploy --dry-run` makes, in real workerd.
const cron = "* * * * *";
let system: System;
let worker: LocalWorker;
let monitor: Monitoring;
const logs: string[] = [];

beforeAll(async () => {
  monitor = await monitoring();
  system = await startSystem(app, monitor);
  worker = await startWorker({
    bindings: { NATS_URL: system.server.url, SORTIE_PUBLISH_TOKEN: "s3cret" },
    onLog: (line) => logs.push(line),
  });
});
afterAll(async () => {
  await worker[Symbol.asyncDispose]();
  await system[Symbol.asyncDispose]();
});

async function post(subject: string, payload: unknown, { at = worker, token = "s3cret" } = {}) {
  const response = await fetch(new URL(`publish/${subject}`, at.url), {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify(payload),
  });
  return { status: response.status, answer: (await response.json()) as Record<string, unknown> };
}

describe("the deployable Worker", () => {
  it("publishes, handles on its cron trigger, and keeps no connection open", async () => {
    const published = await Promise.all(
      Array.from({ length: 20 }, (_, n) => post("images.resize", { url: `https://x.test/${n}.png`, width: 10 })),
    );
    expect(published.map(({ status }) => status)).toEqual(Array(20).fill(202));
    expect((await system.jsm.streams.info("IMAGES")).state.messages).toBe(20);
    expect(await worker.fire(cron)).toEqual({ outcome: "ok", noRetry: false });
    expect((await system.jsm.streams.info("IMAGES")).state.messages).toBe(0);
    await expect.poll(() => logs.filter((line) => line.includes('"resized"'))).toHaveLength(20);
    const report = () => logs.map((line) => JSON.parse(line)).findLast(({ event }) => event === "invocation");
    await expect
      .poll(() => report()?.consumers)
      .toContainEqual(
        expect.objectContaining({ consumer: "resizer", pulled: 20, acked: 20, unconfirmed: 0, ended: "drained" }),
      );
    await expect.poll(() => monitor.connections()).toEqual([]);
  });

  it("is what wrangler.toml says", () => {
    expect(worker.crons).toEqual([cron]);
  });

  it("may overlap itself: each message is handled once", async () => {
    logs.length = 0;
    await Promise.all(
      Array.from({ length: 40 }, (_, n) => post("images.resize", { url: `https://y.test/${n}.png`, width: 10 })),
    );
    await Promise.all(Array.from({ length: 4 }, () => worker.fire(cron)));
    const handled = () => logs.filter((line) => line.includes('"resized"'));
    await expect.poll(handled).toHaveLength(40);
    expect(new Set(handled()).size).toBe(40);
  });

  it("releases reminders where the server does not, each at its time, beside its consumers", async () => {
    await using old = await startSystem(app, { binary: programOf("2.10") });
    const lines: string[] = [];
    const bindings = { NATS_URL: old.server.url, SORTIE_PUBLISH_TOKEN: "s3cret" };
    await using releasing = await startWorker({ bindings, onLog: (line) => lines.push(line) });
    const order = { orderId: "old-1", card: "4242", cents: 100, remindAfterSeconds: 2 };
    expect((await post("orders.placed", order, { at: releasing })).status).toBe(202);
    void releasing.fire(cron).catch(() => {}); // for a minute: the test ends before
    const due = async () => old.jsm.streams.getMessage("ORDERS", { last_by_subj: "orders.reminder" });
    await expect.poll(due).toMatchObject({ subject: "orders.reminder" });
    void releasing.fire(cron).catch(() => {}); // which the next tick handles
    await expect.poll(() => lines.filter((line) => line.includes('"reminded"'))).toHaveLength(1);
    const [placed, reminder] = await Promise.all([old.jsm.streams.getMessage("ORDERS", { seq: 1 }), due()]);
    const afterMs = (reminder?.time.getTime() ?? 0) - (placed?.time.getTime() ?? 0);
    expect(afterMs).toBeGreaterThanOrEqual(2_000);
    expect(afterMs).toBeLessThan(8_000);
  });

  it("fails an invocation that cannot reach NATS, in words, without its credentials", async () => {
    const lines: string[] = [];
    const url = `ws://user:s3cret@127.0.0.1:${await freePort()}`;
    await using lost = await startWorker({
      bindings: { NATS_URL: url, SORTIE_PUBLISH_TOKEN: "s3cret" },
      onLog: (line) => lines.push(line),
    });
    expect((await lost.fire(cron)).outcome).toBe("exception");
    await expect.poll(() => lines.join()).toContain("Could not connect to NATS at");
    const { status, answer } = await post("images.resize", { url: "https://z.test/1.png", width: 1 }, { at: lost });
    expect({ status, type: answer.type }).toEqual({ status: 503, type: "urn:sortie:problem:connection-failed" });
    expect(JSON.stringify([answer, lines])).not.toContain("s3cret");
  });

  it("logs in with the token of its settings", async () => {
    await using server = await startNatsServer({ config: "authorization { token: t0ken }" });
    const settings = { NATS_URL: server.url, SORTIE_PUBLISH_TOKEN: "s3cret" };
    const order = { url: "https://z.test/1.png", width: 1 };
    await using known = await startWorker({ bindings: { ...settings, NATS_TOKEN: "t0ken" } });
    expect((await post("images.resize", order, { at: known })).answer.type).toBe("urn:sortie:problem:stream-missing");
  });

  it("ends an invocation, and lets go of its socket, where the peer upgrades and says nothing more", async () => {
    await using peer = await startPeer(upgradesOnly);
    await using stuck = await startWorker({ bindings: { NATS_URL: peer.url }, onLog: (line) => logs.push(line) });
    const started = Date.now();
    expect((await stuck.fire(cron)).outcome).toBe("exception");
    expect(Date.now() - started).toBeLessThan(10_000);
    await expect.poll(() => peer.sockets.size).toBe(0);
  });

  it("answers in time where the peer upgrades and says nothing more", async () => {
    await using peer = await startPeer(upgradesOnly);
    await using stuck = await startWorker({ bindings: { NATS_URL: peer.url, SORTIE_PUBLISH_TOKEN: "s3cret" } });
    const started = Date.now();
    const { status } = await post("images.resize", { url: "https://z.test/1.png", width: 1 }, { at: stuck });
    expect(status).toBe(503);
    expect(Date.now() - started).toBeLessThan(8_000);
  });
});
