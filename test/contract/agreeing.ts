import { describe, it } from "vitest";
import { fixed } from "../../src/index.ts";
import { appOf, publishJobs, type Start, unfinished, worker } from "./jobs.ts";

/** What several invocations agree on, in records with compare-and-set. */
export function agreeing(start: Start): void {
  describe("invocations side by side", () => {
    it("handle a key once", async ({ expect }) => {
      const handled: number[] = [];
      const consumer = worker({ idempotency: { ttl: "1h", key: ({ data }) => `${data.n % 10}` } });
      await using system = await start(appOf(consumer, ({ data }) => handled.push(data.n % 10)));
      await publishJobs(system, 60);
      await Promise.all(Array.from({ length: 3 }, () => system.invoke()));
      await system.settle();
      expect(handled.toSorted()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
      expect(await unfinished(system)).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
    });

    it("keep to one rate", async ({ expect }) => {
      const starts: number[] = [];
      const consumer = worker({ rateLimit: { messages: 50, per: "1s" } });
      await using system = await start(appOf(consumer, () => starts.push(Date.now())));
      await publishJobs(system, 60);
      await Promise.all(Array.from({ length: 3 }, () => system.invoke()));
      expect(starts).toHaveLength(60);
      const within = starts.map((from) => starts.filter((at) => at >= from && at < from + 1_000).length);
      expect(Math.max(...within)).toBeLessThanOrEqual(53);
    });

    it("put off what is over its key's rate, and let others through", async ({ expect }) => {
      const starts: number[] = [];
      const key = ({ data: { n } }: { data: { n: number } }) => (n < 30 ? "greedy" : `modest ${n}`);
      const consumer = worker({ rateLimit: { messages: 20, per: "1s", key }, maxAckPending: 10 });
      await using system = await start(appOf(consumer, ({ data }) => starts.push(data.n)));
      await publishJobs(system, 35, 0);
      await Promise.all([1, 2].map(() => system.invoke({ budgetMs: 8_000, linger: "3s" })));
      await system.settle(); // on a slow machine they may have been over
      expect(starts.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 35 }, (_, n) => n));
      expect(starts.indexOf(34)).toBeLessThan(25);
      expect(await unfinished(system)).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
    });

    it("stop where one of them finds too many failures, and go on when a message succeeds", async ({ expect }) => {
      let up = false;
      let starts = 0;
      const consumer = worker({
        concurrency: 2,
        retry: { attempts: 100, backoff: fixed(10) },
        breaker: { failureRatio: 1, minimum: 5, openFor: "2s" },
      });
      const app = appOf(consumer, async () => {
        starts += 1;
        await new Promise((resolve) => setTimeout(resolve, 2));
        if (!up) throw new Error("the other side is down");
      });
      await using system = await start(app);
      await publishJobs(system, 30);
      const reports = await Promise.all([system.invoke(), system.invoke()]);
      expect(reports.map(({ consumers }) => consumers[0]?.ended)).toEqual(["open", "open"]);
      const before = starts;
      expect((await system.invoke()).consumers).toMatchObject([{ pulled: 0, ended: "open" }]);
      expect(starts).toBe(before);
      up = true;
      await expect.poll(async () => (await system.invoke()).consumers[0]?.breaker).toBe("closed");
      await system.settle();
      expect(await unfinished(system)).toMatchObject({ num_pending: 0, num_ack_pending: 0 });
    });
  });
}
