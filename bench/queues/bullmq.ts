import { Queue as BullQueue, Worker } from "bullmq";
import { orderAt } from "../order.ts";
import { startRedis } from "../servers.ts";
import { byThousands, type Queue, range } from "./queue.ts";

const concurrency = 100;

export async function startBullMq(fsync: "everysec" | "always"): Promise<Queue> {
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
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}
