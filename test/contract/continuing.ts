import { describe, it } from "vitest";
import type { Place } from "../../src/consume/places.ts";
import { fixed } from "../../src/index.ts";
import type { System } from "../support/system.ts";
import { appOf, publishJobs, type Start, worker } from "./jobs.ts";

const fanOut = { max: 3, places: 3 };

async function lagOf({ jsm }: System): Promise<number> {
  const { num_pending, num_ack_pending } = await jsm.consumers.info("JOBS", "worker");
  return num_pending + num_ack_pending;
}

/** What an invocation says is left, and how it goes on. */
export function continuing(start: Start): void {
  describe("what is left", () => {
    it("is nothing where all was handled", async ({ expect }) => {
      await using system = await start(appOf(worker(), () => {}));
      await publishJobs(system, 10);
      const [report] = (await system.invoke()).consumers;
      expect(report).toMatchObject({ ended: "drained", lag: 0, more: false });
      expect(report).not.toHaveProperty("nextDueIn");
    });

    it("is what the server counts where the time was over, and is gone on with until there is nothing", async ({
      expect,
    }) => {
      const slow = () => new Promise((resolve) => setTimeout(resolve, 25));
      await using system = await start({ ...appOf(worker({ concurrency: 2 }), slow), fanOut });
      await publishJobs(system, 700);
      const asked: (readonly Place[])[] = [];
      const onMore = (places: readonly Place[]) => void asked.push(places);
      const { consumers, continued } = await system.invoke({ budgetMs: 2_000, onMore });
      expect(consumers[0]).toMatchObject({ ended: "budget", more: true, lag: await lagOf(system) });
      expect(consumers[0]!.lag! + consumers[0]!.acked).toBe(700);
      expect(asked).toHaveLength(1);
      expect(asked[0]).toHaveLength(3);
      expect(continued).toEqual({ asked: 3 });

      // one that ends while another still hands back may ask for one more
      for (let places = asked.pop(); places; places = asked.pop()) {
        const reports = await Promise.all(places.map((place) => system.invoke({ place, budgetMs: 10_000, onMore })));
        expect(new Set(reports.flatMap((report) => report.consumers).map(({ ended }) => ended))).toEqual(
          new Set(["drained"]),
        );
      }
      expect(await lagOf(system)).toBe(0);
    });

    it("is known without asking from what came last, where nobody goes on", async ({ expect }) => {
      const slow = () => new Promise((resolve) => setTimeout(resolve, 25));
      await using system = await start(appOf(worker({ concurrency: 2 }), slow));
      await publishJobs(system, 100);
      const [report] = (await system.invoke({ budgetMs: 1_600 })).consumers;
      expect(report).toMatchObject({ ended: "budget", more: true, lag: await lagOf(system) });
    });

    it("tells of what was put off when it is due, and not to go again before", async ({ expect }) => {
      const delayMs = 600;
      const retry = { attempts: 2, backoff: fixed(delayMs) };
      const app = appOf(worker({ retry }), ({ data, attempt }) => {
        if (data.n <= 2 && attempt === 1) throw new Error("not yet");
      });
      await using system = await start(app);
      await publishJobs(system, 5);
      const [report] = (await system.invoke()).consumers;
      expect(report).toMatchObject({ acked: 3, retried: 2, lag: 2, more: false, ended: "drained" });
      expect(report!.nextDueIn).toBeGreaterThan(0);
      expect(report!.nextDueIn).toBeLessThanOrEqual(delayMs);
      await expect.poll(async () => (await system.invoke()) && lagOf(system)).toBe(0);
    });

    it("is nothing to go again for where the consumer may hand out no more", async ({ expect }) => {
      await using system = await start({ ...appOf(worker({ maxAckPending: 2 }), () => {}), fanOut });
      await publishJobs(system, 5);
      await (await system.js.consumers.get("JOBS", "worker")).fetch({ max_messages: 2, expires: 1_000 }).then(drain);
      const asked: (readonly Place[])[] = [];
      const { consumers } = await system.invoke({ onMore: (places) => void asked.push(places) });
      expect(consumers[0]).toMatchObject({ pulled: 0, more: false });
      expect(asked).toEqual([]);
    });
  });
}

async function drain(messages: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of messages);
}
