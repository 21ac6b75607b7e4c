import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LocalWorker, startWorker } from "../../scripts/worker.ts";
import { createKicks } from "../../src/adapters/kick.ts";
import { bundleWorker } from "../support/bundle.ts";
import { type Monitoring, monitoring } from "../support/monitoring.ts";
import { type System, startSystem } from "../support/system.ts";
import { app } from "./workers/app.ts";

// A Worker with `kick`, in real workerd. No cron trigger is ever fired.
let script: string;
let monitor: Monitoring;
let system: System;
let worker: LocalWorker;
const logs: { event: string; n?: number; consumers?: { consumer: string }[]; error?: string }[] = [];

beforeAll(async () => {
  script = await bundleWorker("kicking.ts");
  monitor = await monitoring();
  system = await startSystem(app, monitor);
  worker = await start();
});
afterAll(async () => {
  await worker[Symbol.asyncDispose]();
  await system[Symbol.asyncDispose]();
});

function start(): Promise<LocalWorker> {
  const bindings = { NATS_URL: system.server.url, SORTIE_PUBLISH_TOKEN: "s3cret" };
  return startWorker({ script, bindings, onLog: (line) => logs.push(JSON.parse(line)) });
}

async function post(subject: string, payload: unknown): Promise<number> {
  const response = await fetch(new URL(`publish/${subject}`, worker.url), {
    method: "POST",
    headers: { Authorization: "Bearer s3cret", "Content-Type": "application/json" },
    body: JSON.stringify(payload),
  });
  await response.arrayBuffer();
  return response.status;
}

const logged = (event: string) => logs.filter((entry) => entry.event === event);
const handled = () => logged("done").map(({ n }) => n);
const open = () => monitor.connections();
const left = async () => (await system.jsm.streams.info("JOBS")).state.messages;

describe("a kick", () => {
  it("handles what was published after the answer has left, and lets go of its connection", async () => {
    const before = (await monitor.connections("all")).length;
    expect(await post("jobs.do", { n: 1, ms: 1_000 })).toBe(202);
    expect(handled()).toEqual([]); // the answer did not wait
    await expect.poll(left).toBe(0);
    await expect.poll(handled).toEqual([1]);
    await expect.poll(open).toEqual([]);
    expect((await monitor.connections("all")).length - before).toBe(1); // the request's own is the kick's
    const ran = () => logged("invocation").map(({ consumers }) => consumers?.map(({ consumer }) => consumer));
    await expect.poll(ran).toEqual([["worker"]]); // not the one that does not receive it
  });

  it("is for all consumers of what was published meanwhile", async () => {
    await Promise.all([post("jobs.do", { n: 2, ms: 300 }), post("jobs.other", "x"), post("jobs.do", { n: 3, ms: 0 })]);
    await expect.poll(left).toBe(0);
    await expect.poll(() => handled().toSorted()).toEqual([1, 2, 3]);
    await expect.poll(() => logged("done-other")).toHaveLength(1);
  });

  it("is one at a time, however many publishes there are, and all that they publish is handled", async () => {
    logs.length = 0;
    const before = (await monitor.connections("all")).length;
    const answers = await Promise.all(Array.from({ length: 200 }, (_, n) => post("jobs.do", { n, ms: n % 20 })));
    expect(answers.filter((status) => status !== 202)).toEqual([]);
    await expect.poll(handled).toHaveLength(200);
    expect(new Set(handled()).size).toBe(200);
    await expect.poll(open).toEqual([]);
    expect((await monitor.connections("all")).length - before).toBe(200); // one for each request
    expect(logged("invocation").length).toBeLessThan(40); // one after the other for as long as it took
  });

  it("neither fails nor holds up the publish that it comes after, where NATS goes away", async () => {
    logs.length = 0;
    expect(await post("jobs.do", { n: 1_000, ms: 1_000 })).toBe(202);
    await expect.poll(open).toHaveLength(1);
    const late = post("jobs.do", { n: 1_001 }); // its kick waits for the one that is under way
    expect(await late).toBe(202);
    await system.server.kill("SIGKILL");
    const reasons = () => logged("kick-failed").map(({ error }) => error);
    await expect.poll(reasons).toContainEqual(expect.stringContaining("closed connection"));
    await system.server.start();
    expect(await post("jobs.do", { n: 1_002 })).toBe(202); // and the next one starts its own
    await expect.poll(handled).toContain(1_002);
  });

  it("that never ends, as its request was killed, is not waited for beyond its time", async () => {
    const { kick } = createKicks<string>(() => {});
    const ran: (readonly string[])[] = [];
    void kick(["a"], Date.now() + 5_200, () => new Promise(() => {}));
    const [soon, later] = ["b", "c"].map((one) => kick([one], Date.now() + 30_000, async (due) => ran.push(due)));
    await Promise.all([soon, later]);
    expect(ran).toEqual([["b", "c"]]);
  });
});
