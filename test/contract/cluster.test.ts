import { describe, expect, it } from "vitest";
import { observe } from "../support/system.ts";
import { after, safeWorker, shareCluster } from "./clustered.ts";
import { appOf, publishJobs } from "./jobs.ts";

const start = shareCluster();

describe("in a cluster", { timeout: 60_000 }, () => {
  it("apply makes everything as safe as it is defined, what Sortie keeps as well, and nothing the second time", async () => {
    const { followers, again } = await start(appOf(safeWorker({ maxAckPending: 100 }), () => {}));
    await using look = await observe(followers[0]);
    const replicas: Record<string, number> = {};
    for await (const { config } of look.jsm.streams.list()) replicas[config.name] = config.num_replicas;
    expect(replicas).toEqual({ JOBS: 3, DEAD: 3, SORTIE_ATTEMPTS: 3, SORTIE_SCHEDULES: 3, SORTIE_PARKED: 3 });
    for (const [stream, name] of [
      ["JOBS", "worker"],
      ["SORTIE_PARKED", "JOBS~worker"],
    ] as const) {
      const { cluster: group } = await look.jsm.consumers.info(stream, name);
      expect(group?.replicas).toHaveLength(2); // beside its leader
    }
    expect(again.map(({ action }) => action)).toEqual(Array(7).fill("none"));
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
      const { consumers } = await run(followers[0], { budgetMs: 1_000 });
      const { acked, retried, returned, ...report } = consumers[0]!;
      expect(report).toMatchObject({ pulled: acked + retried + returned, unconfirmed: 0, ended: "budget" });
      pulled += report.pulled;
      const { delivered, num_ack_pending } = await look.jsm.consumers.info("JOBS", "worker");
      expect(delivered.consumer_seq).toBe(pulled);
      expect(num_ack_pending).toBeLessThanOrEqual(retried + returned);
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
    const { followers, run, expectAllDone } = await start(app);
    await using look = await observe(followers[1]);
    await publishJobs(look, 200);
    const { ms, consumers } = await run(followers[0]);
    expect(ms).toBeLessThan(20_000);
    expect(consumers[0]?.deadLettered).toBe(0);
    await stepDown.done();
    await expectAllDone(followers[1], 200);
    expect(seen.size).toBe(200);
    expect([...seen].filter(([n, attempts]) => Math.max(...attempts) > (n % 20 === 0 ? 2 : 1))).toEqual([]);
  });
});
