import { startInContainer } from "./hosts.ts";
import { sample } from "./sample.ts";

sample("a container", startInContainer);
