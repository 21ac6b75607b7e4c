import { orderAt } from "../order.ts";
import { startPostgres } from "../servers.ts";
import { byThousands, type Queue, range } from "./queue.ts";

/**
 * As its documentation measures itself, completing jobs in batches; or as it recommends a local queue, and completes
 * jobs unless told otherwise, each by itself.
 */
export async function startGraphileWorker(how: "in batches" | "each by itself"): Promise<Queue> {
  const [concurrentJobs, size, delay] = how === "in batches" ? [24, 500, 0] : [100, 101, -1];
  process.env.NO_LOG_SUCCESS ??= "1"; // or each job is a line, silent as the logger is; read when it is imported
  const { Logger, makeWorkerUtils, runOnce } = await import("graphile-worker");
  await using starting = new AsyncDisposableStack();
  const postgres = starting.use(await startPostgres());
  const connectionString = `postgresql:///postgres?host=${encodeURIComponent(postgres.socket)}&user=bench`;
  const logger = new Logger(() => () => {});
  const utils = await makeWorkerUtils({ connectionString, logger });
  starting.defer(() => utils.release());
  await utils.migrate();
  const running = starting.move();
  const batched = { localQueue: { size }, completeJobBatchDelay: delay, failJobBatchDelay: delay };
  return {
    name: `graphile-worker, ${how}`,
    server: `PostgreSQL ${postgres.version}, fsync on, synchronous_commit on`,
    settings: `concurrentJobs ${concurrentJobs}, localQueue ${size}, completed ${how}`,
    fill: (count) =>
      byThousands(count, (from, to) =>
        utils.addJobs(range(from, to, (n) => ({ identifier: "order", payload: orderAt(n) }))),
      ),
    async drain(count) {
      let handled = 0;
      const order = () => {
        handled += 1;
      };
      const worker = { connectionString, concurrentJobs, maxPoolSize: 25, ...batched };
      await runOnce({ logger, taskList: { order }, preset: { worker } });
      if (handled !== count) throw new Error(`graphile-worker handled ${handled} jobs of ${count}`);
    },
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}
