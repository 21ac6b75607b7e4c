import { startUnderFetch } from "./hosts.ts";
import { sample } from "./sample.ts";

sample("a host of fetch", startUnderFetch);
