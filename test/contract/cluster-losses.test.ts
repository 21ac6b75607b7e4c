import { describe, expect, it } from "vitest";
import type { Node } from "../support/cluster.ts";
import { observe } from "../support/system.ts";
import { after, safeWorker, shareCluster } from "./clustered.ts";
import { appOf, publishJobs } from "./jobs.ts";

const start = shareCluster();

describe("in a cluster that loses nodes", { timeout: 60_000 }, () => {
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
    const { leader, followers, run, expectAllDone } = await start(app);
    await using look = await observe(followers[1]);
    await publishJobs(look, 200);
    const { ms, consumers } = await run(followers[0]);
    const [report] = consumers;
    expect(ms).toBeLessThan(20_000);
    expect(report).toMatchObject({ deadLettered: 0 });
    expect(report?.pulled).toBeGreaterThanOrEqual((report?.acked ?? 0) + (report?.unconfirmed ?? 0));
    await crash.done();
    await expectAllDone(followers[1], 200);
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
    const { followers, run, expectAllDone } = await start(app);
    await using look = await observe(followers[1]);
    await publishJobs(look, 200);
    const { ms, consumers } = await run(followers[0]);
    expect(ms).toBeLessThan(10_000);
    expect(consumers[0]).toMatchObject({ ended: "failed", error: expect.stringMatching(/closed/i) });
    expect(consumers[0]?.acked).toBeLessThan(200);
    await expectAllDone(followers[1], 200);
    expect(seen.size).toBe(200);
  });

  it.each([
    ["that nobody leads", 1],
    ["whose leader has lost the others", 0],
  ])("an invocation of a consumer %s ends in time and says so, and nothing is lost", async (_, left) => {
    const app = appOf(safeWorker(), ({ data }, { publish }) => publish("jobs.done", data));
    const { leader, followers, run, expectAllDone } = await start(app);
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
    await expectAllDone(survivor as Node, 200);
  });
});
