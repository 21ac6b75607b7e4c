import { setTimeout as sleep } from "node:timers/promises";
import { describe, it } from "vitest";
import * as z from "zod";
import { keepConnection } from "../../src/adapters/kept-connection.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { type Connection, connect, disconnect } from "../../src/nats/connection.ts";
import { publish } from "../../src/publish/publish.ts";
import { monitoring } from "../support/monitoring.ts";
import { startProxy } from "../support/peers.ts";
import { startStretch } from "../support/stretch.ts";
import { startSystem } from "../support/system.ts";

const jobs = defineStream("JOBS", { subjects: { "jobs.do": z.object({ n: z.number() }) }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const doing = defineConsumer(jobs, "doing", { deadLetter: "dead.jobs" });
const app = createApp({ streams: [jobs, dead] }).on(doing, () => {});

const idle = () => sleep(1_050); // no longer used a moment ago

/** What one invocation does over the connection that it gets. */
async function publishOver(connect: (ms: number) => Promise<Connection>, n = 1): Promise<number> {
  const connection = await connect(5_000);
  try {
    const message = { stream: "JOBS", subject: "jobs.do", payload: new TextEncoder().encode(JSON.stringify({ n })) };
    return (await publish(connection, message, 2_000)).sequence;
  } finally {
    disconnect(connection);
  }
}

async function startKept({ idleMs = 60_000, through = (url: string) => Promise.resolve({ url }) } = {}) {
  const monitor = await monitoring();
  const system = await startSystem(app, monitor);
  const { url } = await through(system.server.url);
  const kept = keepConnection((ms) => connect({ url }, ms), idleMs);
  const seen = async (state?: "open" | "all") => (await monitor.connections(state)).map(({ cid }) => cid);
  return { ...system, kept, monitor, seen };
}

/** The same through a proxy that can forget what goes over it, as a network does that drops a connection. */
async function startVanishing(proxies: AsyncDisposableStack) {
  let vanish = () => {};
  const system = await startKept({
    async through(url) {
      const proxy = proxies.use(await startProxy(url));
      vanish = proxy.forget;
      return proxy;
    },
  });
  return { ...system, vanish: () => vanish() };
}

describe.concurrent("a connection that is kept", () => {
  it("is one for all invocations, one after the other and at the same time, and they leave nothing behind", async ({
    expect,
  }) => {
    await using system = await startKept();
    const { kept, monitor, invoke, jsm } = system;
    const before = (await system.seen("all")).length;
    await Promise.all([publishOver(kept.connect), publishOver(kept.connect), publishOver(kept.connect)]);
    const counts: (number | undefined)[] = [];
    for (let n = 0; n < 3; n++) {
      await publishOver(kept.connect);
      await invoke({ connect: kept.connect });
      expect((await jsm.consumers.info("JOBS", "doing")).num_waiting).toBe(0);
      const [only, ...others] = await monitor.connections();
      expect(others).toEqual([]);
      counts.push(only?.subscriptions);
    }
    expect(counts).toEqual([1, 1, 1]); // the client's own, for answers
    expect((await jsm.streams.info("JOBS")).state.messages).toBe(0);
    expect((await system.seen("all")).length).toBe(before + 1);
    await kept.end();
    await expect.poll(() => system.seen()).toEqual([]);
  });

  it("costs a publish, or a pull, one flight, and one more where it was idle", async ({ expect }) => {
    let arrived = () => {};
    const telling = createApp({ streams: [jobs, dead] }).on(doing, () => arrived());
    await using system = await startSystem(telling);
    await using stretch = await startStretch(system.server.url, 30);
    for (const way of ["publish", "pull"]) {
      const kept = keepConnection((ms) => connect({ url: stretch.url }, ms), 60_000);
      const flightsOf = async () => {
        const before = stretch.flights;
        if (way === "publish") {
          await publishOver(kept.connect);
          return stretch.flights - before;
        }
        let first = 0;
        arrived = () => {
          first ||= stretch.flights - before;
        };
        await system.publish("jobs.do", { n: 1 });
        await system.invoke({ connect: kept.connect });
        return first;
      };
      expect([way, await flightsOf()]).toEqual([way, 2]); // the upgrade; without what TCP and TLS take
      await expect.poll(flightsOf, { message: way, interval: 1 }).toBe(1); // as soon as one comes right after another
      await idle();
      expect([way, await flightsOf()]).toEqual([way, 2]);
      await kept.end();
    }
  });

  it("is replaced where its peer has vanished without a word, and is not waited for", async ({ expect }) => {
    await using proxies = new AsyncDisposableStack();
    const { vanish, ...system } = await startVanishing(proxies);
    proxies.use(system);
    await publishOver(system.kept.connect);
    vanish();
    await idle();
    expect(await publishOver(system.kept.connect)).toBe(2); // within the time for connecting and publishing
    await system.kept.end();
  });

  it("is closed, and what was asked fails, where it was used a moment ago and does not answer", async ({ expect }) => {
    await using proxies = new AsyncDisposableStack();
    const { vanish, ...system } = await startVanishing(proxies);
    proxies.use(system);
    await publishOver(system.kept.connect);
    vanish();
    // used a moment ago, it is asked beside
    await expect(publishOver(system.kept.connect)).rejects.toMatchObject({ code: "connection-lost" });
    expect(await publishOver(system.kept.connect)).toBe(2);
    await system.kept.end();
  });

  it("is asked once a request was not answered, though others use it, and is replaced for all", async ({ expect }) => {
    await using proxies = new AsyncDisposableStack();
    const { vanish, ...system } = await startVanishing(proxies);
    proxies.use(system);
    const lingering = await system.kept.connect(5_000);
    await publishOver(system.kept.connect);
    vanish();
    await expect(publishOver(system.kept.connect)).rejects.toMatchObject({ code: "timed-out" });
    expect(await publishOver(system.kept.connect)).toBe(2);
    await lingering.closed();
    await system.kept.end();
  });

  it("is replaced after a server that was restarted, and after it was idle for too long", async ({ expect }) => {
    await using system = await startKept({ idleMs: 1_000 });
    await publishOver(system.kept.connect);
    const [first] = await system.seen();
    await system.server.kill();
    await expect(publishOver(system.kept.connect)).rejects.toMatchObject({ code: "connection-failed" });
    await system.server.start();
    expect(await publishOver(system.kept.connect)).toBe(2);
    const [second] = await system.seen();
    await idle();
    expect(await publishOver(system.kept.connect)).toBe(3);
    await expect.poll(async () => (await system.seen()).length).toBe(1);
    expect(await system.seen()).not.toContain(second);
    expect(first).toBeDefined();
    await system.kept.end();
  });

  it("is not kept where it was not used, or is not to be idle at all", async ({ expect }) => {
    await using system = await startKept({ idleMs: 0 });
    await publishOver(system.kept.connect);
    await expect.poll(() => system.seen()).toEqual([]);
    const kept = keepConnection(() => system.connect(), 60_000);
    disconnect(await kept.connect(5_000)); // before it was confirmed
    await expect.poll(() => system.seen()).toEqual([]);
  });
});
