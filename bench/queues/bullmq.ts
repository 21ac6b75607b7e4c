import { Queue as BullQueue, Worker } from "bullmq";
import { orderAt } from "../order.ts";
import { startRedis } from "../servers.ts";
import { assertAhead, byThousands, type Delaying, type Queue, range, starts } from "./queue.ts";

const concurrency = 100;

export async function startBullMq(fsync: "everysec" | "always"): Promise<Queue & Delaying> {
  await using starting = new AsyncDisposableStack();
  const redis = starting.use(await startRedis(fsync));
  const connection = { path: redis.socket, maxRetriesPerRequest: null };
  const queue = new BullQueue("orders", { connection });
  starting.defer(() => queue.close());
  let closed = Promise.resolve(); // the last worker, of which nobody waits for the end while it is measured
  starting.defer(() => closed);
  const running = starting.move();
  return {
    name: fsync === "everysec" ? "BullMQ" : "BullMQ, fsync always",
    server: `Redis ${redis.version}, appendonly yes, appendfsync ${fsync}`,
    settings: `concurrency ${concurrency}, removeOnComplete`,
    async fill(count) {
      await closed;
      await byThousands(count, (from, to) =>
        queue.addBulk(range(from, to, (n) => ({ name: "order", data: orderAt(n), opts: { removeOnComplete: true } }))),
      );
    },
    async drain(count) {
      const worker = new Worker("orders", async () => {}, { connection, concurrency });
      let left = count;
      await new Promise<void>((resolve, reject) => {
        worker.on("error", reject);
        worker.on("completed", () => {
          left -= 1;
          if (left === 0) resolve();
        });
      });
      closed = worker.close();
    },
    later: {
      settings: `delay, concurrency ${concurrency}; a worker waits on Redis until the next is due`,
      async lateness(due) {
        const { heard, all } = starts(due);
        const worker = new Worker("later", async ({ data }) => heard(data), { connection, concurrency });
        const waiting = new BullQueue("later", { connection });
        await byThousands(due.length, (from, to) => {
          const timestamp = Date.now();
          const opts = (n: number) => ({ removeOnComplete: true, timestamp, delay: (due[n] ?? 0) - timestamp });
          return waiting.addBulk(range(from, to, (n) => ({ name: "order", data: orderAt(n), opts: opts(n) })));
        });
        try {
          assertAhead(due);
          return await all();
        } finally {
          await worker.close();
          await waiting.close();
        }
      },
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}
