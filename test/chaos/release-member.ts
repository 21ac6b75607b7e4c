import { connect } from "../../src/nats/connection.ts";
import { crashPoints } from "../../src/nats/within.ts";
import { release } from "../../src/schedule/release.ts";
import { tasks } from "./release-app.ts";

/** What a process that releases schedules is told. */
export interface Releasing {
  readonly url: string;
  /** How often it dies, at whichever of its waits: once in so many of them, on average. 0 for never. */
  readonly mortality: number;
}

const { url, mortality }: Releasing = JSON.parse(process.argv[2] ?? "");

if (mortality > 0) {
  crashPoints.reached = () => {
    if (Math.random() < 1 / mortality) process.kill(process.pid, "SIGKILL");
  };
}

for (;;) {
  try {
    const connection = await connect({ url }, 5_000);
    await release(connection, [tasks], { deadline: Date.now() + 3_000, lingerMs: Infinity });
    await connection.close();
  } catch {} // the server may be away
}
