import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import type { App } from "../../src/app.ts";
import { type InvocationOptions, invoke } from "../../src/consume/invocation.ts";
import { connect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { type Cluster, type Node, startCluster } from "../support/cluster.ts";
import { type Observer, observe } from "../support/system.ts";
import { appOf, deadLetters, jobs, nothing, publishJobs, stored, unfinished, worker } from "./jobs.ts";

// It takes seconds until a cluster is up: the tests share one, and each finds it whole and empty.
let cluster: Cluster;
beforeAll(async () => {
  cluster = await startCluster();
}, 60_000);
afterEach(() => cluster.renew(), 60_000);
afterAll(() => cluster[Symbol.asyncDispose]());

const safeJobs = { ...jobs, replicas: 3 };
const safeWorker = (options: Parameters<typeof worker>[0] = {}) => worker({ ackWait: "3s", ...options }, safeJobs);

/** An app in the cluster, and the nodes by what they are to its consumer. */
async function start(app: Pick<App, "streams" | "bindings">) {
  const consumers = app.bindings.map(({ consumer }) => consumer);
  const [first] = cluster.nodes as [Node];
  const connection = await connect({ url: first.url }, 5_000);
  const definitions = { streams: app.streams, consumers };
  await apply(connection, definitions);
  const again = await apply(connection, definitions);
  await connection.close();
  const { leader, leads } = await leadersOf(await observe(first));
  // the one that leads least first
  const followers = cluster.nodes.filter((node) => node !== leader).toSorted((a, b) => leads(a) - leads(b));
  return { again, leader, followers: followers as [Node, Node], run };

  function run(node: Node, { budgetMs = 20_000, ...more }: Partial<InvocationOptions> & { budgetMs?: number } = {}) {
    return invoke({
      streams: app.streams,
      bindings: app.bindings,
      connect: (ms) => connect({ url: node.url }, ms),
      deadline: Date.now() + budgetMs,
      log: () => {},
      ...more,
    });
  }
}

/** Who leads the jobs' consumer, and how many of the streams a node leads. */
async function leadersOf(observer: Observer) {
  await using look = observer;
  const { cluster: group } = await look.jsm.consumers.info("JOBS", "worker");
  const names: (string | undefined)[] = [];
  for await (const { cluster: group } of look.jsm.streams.list()) names.push(group?.leader);
  return {
    leader: cluster.nodes.find(({ name }) => name === group?.leader) as Node,
    leads: (node: Node) => names.filter((name) => name === node.name).length,
  };
}

/** Does `act` once so many handlers have been started. */
function after(count: number, act: () => Promise<void>) {
  let started = 0;
  let acted: Promise<void> | undefined;
  return {
    started() {
      started += 1;
      if (started >= count) acted ??= act();
    },
    done: () => acted,
  };
}

/** Invokes on a node until nothing is left to do, and looks from there: each job was done, once as far as it can be seen. */
async function expectAllDone(node: Node, count: number, run: (node: Node) => Promise<unknown>): Promise<void> {
  const allDone = async () => {
    await run(node);
    await using look = await observe(node);
    expect(await unfinished(look)).toEqual(nothing);
  };
  await vi.waitFor(allDone, { timeout: 40_000, interval: 100 });
  await using look = await observe(node);
  expect(await stored(look, "JOBS")).toEqual({ "jobs.done": count });
  expect(await deadLetters(look)).toEqual([]);
}

describe("in a cluster", { timeout: 60_000 }, () => {
  it("apply makes everything as safe as it is defined, what Sortie keeps as well, and nothing the second time", async () => {
    const { followers, again } = await start(appOf(safeWorker({ maxAckPending: 100 }), () => {}));
    await using look = await observe(followers[0]);
    const replicas: Record<string, number> = {};
    for await (const { config } of look.jsm.streams.list()) replicas[config.name] = config.num_replicas;
    expect(replicas).toEqual({ JOBS: 3, DEAD: 3, SORTIE_ATTEMPTS: 3, SORTIE_PARKED: 3 });
    for (const [stream, name] of [
      ["JOBS", "worker"],
      ["SORTIE_PARKED", "JOBS~worker"],
    ] as const) {
      const { cluster: group } = await look.jsm.consumers.info(stream, name);
      expect(group?.replicas).toHaveLength(2); // beside its leader
    }
    expect(again.map(({ action }) => action)).toEqual(Array(6).fill("none"));
  });

  it("what a report says to be acknowledged has been: the leader has nothing outstanding, asked at once from elsewhere", async () => {
    const { followers, run } = await start(appOf(safeWorker({ concurrency: 200 }), () => {}));
    await using look = await observe(followers[1]);
    for (let round = 1; round <= 10; round++) {
      await publishJobs(look, 200);
      const { consumers } = await run(followers[0]);
      const { num_ack_pending, num_pending, delivered } = await look.jsm.consumers.info("JOBS", "worker");
      expect(consumers[0]).toMatchObject({ pulled: 200, acked: 200, unconfirmed: 0, ended: "drained" });
      expect({ num_ack_pending, num_pending }).toEqual({ num_ack_pending: 0, num_pending: 0 });
      expect(delivered.consumer_seq).toBe(round * 200);
    }
  });

  it("an invocation whose time is over leaves nothing behind that was on its way to it", async () => {
    const app = appOf(safeWorker({ concurrency: 50 }), () => new Promise((resolve) => setTimeout(resolve, 20)));
    const { followers, run } = await start(app);
    await using look = await observe(followers[1]);
    await publishJobs(look, 6_000);
    let pulled = 0;
    for (let round = 1; round <= 3; round++) {
      const [report] = (await run(followers[0], { budgetMs: 1_000 })).consumers;
      expect(report).toMatchObject({ ended: "budget", unconfirmed: 0 });
      pulled += report?.pulled ?? 0;
      expect(report?.pulled).toBe((report?.acked ?? 0) + (report?.returned ?? 0));
      const { delivered, num_ack_pending } = await look.jsm.consumers.info("JOBS", "worker");
      expect(delivered.consumer_seq).toBe(pulled);
      expect(num_ack_pending).toBe(report?.returned);
    }
  });

  it.each([
    ["the consumer", "$JS.API.CONSUMER.LEADER.STEPDOWN.JOBS.worker"],
    ["the stream, to which handlers publish as well,", "$JS.API.STREAM.LEADER.STEPDOWN.JOBS"],
    ["the stream that counts attempts", "$JS.API.STREAM.LEADER.STEPDOWN.SORTIE_ATTEMPTS"],
  ])("nothing is lost and nothing is charged where the leader of %s steps down in the middle", async (_, subject) => {
    const seen = new Map<number, number[]>();
    const stepDown = after(20, async () => {
      await using look = await observe(followers[1]);
      expect((await look.tcp.request(subject, "", { timeout: 5_000 })).json()).toMatchObject({ success: true });
    });
    const app = appOf(safeWorker({ concurrency: 4 }), async ({ data: { n }, attempt }, { publish }) => {
      stepDown.started();
      seen.set(n, [...(seen.get(n) ?? []), attempt]);
      await publish("jobs.done", { n });
      if (n % 20 === 0 && attempt === 1) throw new Error("again");
      await new Promise((resolve) => setTimeout(resolve, 5));
    });
    const { followers, run } = await start(app);
    await using look = await observe(followers[1]);
    await publishJobs(look, 200);
    const { ms, consumers } = await run(followers[0]);
    expect(ms).toBeLessThan(20_000);
    expect(consumers[0]?.deadLettered).toBe(0);
    await stepDown.done();
    await expectAllDone(followers[1], 200, run);
    expect(seen.size).toBe(200);
    expect([...seen].filter(([n, attempts]) => Math.max(...attempts) > (n % 20 === 0 ? 2 : 1))).toEqual([]);
  });

  it("nothing is lost where the consumer's leader is killed in the middle and comes back", async () => {
    const seen = new Set<number>();
    const crash = after(20, async () => {
      await leader.kill("SIGKILL");
      await leader.start();
    });
    const app = appOf(safeWorker({ concurrency: 4 }), async ({ data }, { publish }) => {
      crash.started();
      seen.add(data.n);
      await publish("jobs.done", data);
      await new Promise((resolve) => setTimeout(resolve, 5));
    });
    const { leader, followers, run } = await start(app);
    await using look = await observe(followers[1]);
    await publishJobs(look, 200);
    const { ms, consumers } = await run(followers[0]);
    const [report] = consumers;
    expect(ms).toBeLessThan(20_000);
    expect(report).toMatchObject({ deadLettered: 0 });
    expect(report?.pulled).toBeGreaterThanOrEqual((report?.acked ?? 0) + (report?.unconfirmed ?? 0));
    await crash.done();
    await expectAllDone(followers[1], 200, run);
    expect(seen.size).toBe(200);
  });

  it("an invocation whose own node is killed ends and says so, and the next one carries on from another node", async () => {
    const seen = new Set<number>();
    const crash = after(20, () => followers[0].kill("SIGKILL"));
    const app = appOf(safeWorker({ concurrency: 4 }), async ({ data }, { publish }) => {
      crash.started();
      seen.add(data.n);
      await publish("jobs.done", data);
      await new Promise((resolve) => setTimeout(resolve, 5));
    });
    const { followers, run } = await start(app);
    await using look = await observe(followers[1]);
    await publishJobs(look, 200);
    const { ms, consumers } = await run(followers[0]);
    expect(ms).toBeLessThan(10_000);
    expect(consumers[0]).toMatchObject({ ended: "failed", error: expect.stringMatching(/closed/i) });
    expect(consumers[0]?.acked).toBeLessThan(200);
    await expectAllDone(followers[1], 200, run);
    expect(seen.size).toBe(200);
  });

  it.each([
    ["that nobody leads", 1],
    ["whose leader has lost the others", 0],
  ])("an invocation of a consumer %s ends in time and says so, and nothing is lost", async (_, left) => {
    const app = appOf(safeWorker(), ({ data }, { publish }) => publish("jobs.done", data));
    const { leader, followers, run } = await start(app);
    const [survivor, ...others] = left === 0 ? [leader, ...followers] : [followers[0], leader, followers[1]];
    {
      await using look = await observe(leader);
      await publishJobs(look, 200);
    }
    await Promise.all(others.map((node) => node.kill("SIGKILL")));
    const { ms, consumers } = await run(survivor as Node, { budgetMs: 4_000 });
    expect(ms).toBeLessThan(4_000);
    expect(consumers[0]).toMatchObject({ acked: 0, ended: "failed", error: expect.stringMatching(/"worker".*"JOBS"/) });
    await Promise.all(others.map((node) => node.start()));
    await expectAllDone(survivor as Node, 200, run);
  });
});
