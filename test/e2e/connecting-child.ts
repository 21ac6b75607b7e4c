import { inspect } from "node:util";
import { ConnectionFailedError } from "../../src/errors.ts";
import { connect, disconnect } from "../../src/nats/connection.ts";

// Connects to each URL of its arguments at once and tells how that went; stays until its standard input ends.
const outcomes = await Promise.all(
  process.argv.slice(2).map(async (url) => {
    try {
      const connection = await connect({ url }, 2_000);
      await connection.confirmed?.finally(() => disconnect(connection));
      return { reason: "none", said: "connected" };
    } catch (error) {
      const reason = error instanceof ConnectionFailedError ? error.reason : "unknown";
      return { reason, said: inspect(error, { depth: 10, showHidden: true }) };
    }
  }),
);
console.log(JSON.stringify(outcomes));
process.stdin.resume();
