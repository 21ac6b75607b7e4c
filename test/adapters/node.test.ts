import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect as connectTcp } from "node:net";
import { createInterface } from "node:readline";
import { afterEach, describe, expect, it, vi } from "vitest";
import * as z from "zod";
import { app as sample } from "../../functions/app.ts";
import { serve } from "../../src/adapters/node.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { monitoring } from "../support/monitoring.ts";
import { startSystem } from "../support/system.ts";

const token = "a token for whoever may do all";
const asAdmin = { Authorization: `Bearer ${token.replaceAll(" ", "-")}`, "Content-Type": "application/json" };

afterEach(() => vi.unstubAllEnvs());

function post(url: string, path: string, payload?: unknown): Promise<Response> {
  const body = payload === undefined ? {} : { body: JSON.stringify(payload) };
  return fetch(new URL(path, url), { method: "POST", headers: asAdmin, ...body });
}

/** functions/node.ts, as a container runs it. */
async function startProcess(natsUrl: string) {
  const env = { ...process.env, NATS_URL: natsUrl, PORT: "0", SORTIE_ADMIN_TOKEN: token.replaceAll(" ", "-") };
  const child: ChildProcess = spawn(process.execPath, ["functions/node.ts"], {
    env,
    stdio: ["ignore", "pipe", "inherit"],
  });
  const logs: { event: string; url?: string; [name: string]: unknown }[] = [];
  createInterface({ input: child.stdout! }).on("line", (line) => logs.push(JSON.parse(line)));
  const listening = () => logs.find(({ event }) => event === "listening");
  await vi.waitFor(() => expect(listening()).toBeTruthy(), 10_000);
  return {
    child,
    logs,
    url: listening()?.url ?? "",
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  };
}

describe("a process that stays up", () => {
  it("publishes, handles, and releases, over one connection, through a restart of the server, until it is told to leave", async ({
    expect,
  }) => {
    const monitor = await monitoring();
    await using system = await startSystem(sample, monitor);
    await using container = await startProcess(system.server.url);
    const told = (event: string) => container.logs.filter((line) => line.event === event);

    const order = { orderId: "1", card: "tok_busy", cents: 100, remindAfterSeconds: 1 };
    expect((await post(container.url, "publish/orders.placed", order)).status).toBe(202);
    await expect.poll(() => told("charged"), { timeout: 15_000 }).toMatchObject([{ orderId: "1", attempt: 2 }]);
    await expect.poll(() => told("reminded"), { timeout: 15_000 }).toMatchObject([{ orderId: "1" }]);
    expect(await monitor.connections()).toHaveLength(1);

    await system.server.kill("SIGKILL");
    await system.server.start();
    const again = async () => (await post(container.url, "publish/orders.placed", { ...order, orderId: "2" })).status;
    await expect.poll(again, { timeout: 15_000 }).toBe(202);
    await expect.poll(() => told("charged").at(-1), { timeout: 20_000 }).toMatchObject({ orderId: "2" });

    container.child.kill("SIGTERM");
    expect(await once(container.child, "exit")).toEqual([0, null]);
    await expect.poll(() => monitor.connections()).toHaveLength(0);
  });

  it("ends with the reason where its port is taken", async ({ expect }) => {
    await using system = await startSystem(createApp({ streams: [] }));
    vi.stubEnv("NATS_URL", system.server.url);
    await using first = await serve(createApp({ streams: [] }), { port: 0 });
    const taken = Number(new URL(first.url).port);
    await expect(serve(createApp({ streams: [] }), { port: taken })).rejects.toThrow("EADDRINUSE");
  });

  it("that is told to leave does not wait for who holds a connection open and asks nothing", async () => {
    await using system = await startSystem(createApp({ streams: [] }));
    vi.stubEnv("NATS_URL", system.server.url);
    const served = await serve(createApp({ streams: [] }), { port: 0 });
    const idle = connectTcp(Number(new URL(served.url).port), "localhost");
    await once(idle, "connect");
    idle.write("GET / HTTP/1.1\r\n");
    idle.on("error", () => {});
    const closed = once(idle, "close");
    await served.stop();
    await closed;
  });

  it("answers a health check of HTTP/1.0, which names no host", async () => {
    await using served = await serve(createApp({ streams: [] }), { port: 0 });
    const probe = connectTcp(Number(new URL(served.url).port), "localhost");
    probe.end("GET /health HTTP/1.0\r\n\r\n");
    let answer = "";
    for await (const chunk of probe) answer += chunk;
    expect(answer).toMatch(/^HTTP\/1\.1 200 [\s\S]*\{"status":"ok"\}/);
  });

  it.each<[object, RegExp]>([
    [{ concurrency: 0 }, /concurrency/],
    [{ budget: "0s" }, /budget: expected a second or more/],
    [{ budget: "soon" }, /budget/],
  ])("refuses %j", async (options, reason) => {
    await expect(serve(createApp({ streams: [] }), options)).rejects.toThrow(reason);
  });

  it("refuses a port that is none", async ({ expect }) => {
    vi.stubEnv("PORT", "abc");
    await expect(serve(createApp({ streams: [] }))).rejects.toThrow('PORT: expected a port from 0 to 65535, got "abc"');
    vi.unstubAllEnvs();
  });

  it("that is told to leave finishes what it has started, and hands back the rest", async ({ expect }) => {
    const jobs = defineStream("JOBS", { subjects: { "jobs.do": z.number() }, retention: "workqueue" });
    const dead = defineStream("DEAD", { captures: ["dead.>"] });
    const worker = defineConsumer(jobs, "worker", { deadLetter: "dead.jobs", concurrency: 1, batch: 5 });
    const go = Promise.withResolvers<void>();
    const handled: number[] = [];
    const app = createApp({ streams: [jobs, dead] }).on(worker, async ({ data }) => {
      if (data > 0) await go.promise;
      handled.push(data);
    });
    await using system = await startSystem(app);
    vi.stubEnv("NATS_URL", system.server.url);
    await using served = await serve(app, { port: 0 });
    await system.publish("jobs.do", 0);
    await expect.poll(() => handled).toEqual([0]); // how long one takes is known
    for (const n of [1, 2, 3]) await system.publish("jobs.do", n);
    const state = () => system.jsm.consumers.info("JOBS", "worker");
    await expect.poll(async () => (await state()).num_ack_pending).toBeGreaterThan(0);

    const stopping = served.stop();
    go.resolve();
    await stopping;
    expect(handled).toContain(1);
    await expect(fetch(served.url)).rejects.toThrow();
    await system.settle();
    expect(handled.toSorted()).toEqual([0, 1, 2, 3]); // each once
  });
});
