/** A photo as imgproxy finds it, with the size of the original in pixels. */
export interface Photo {
  src: string;
  width: number;
  height: number;
  alt: string;
}

/** The photos of tests/photos, which the imgproxy of `make up` and of the tests has as `local:///NAME`. */
export const photos: Photo[] = [
  { src: "local:///coffee.png", width: 600, height: 400, alt: "Coffee" },
  { src: "local:///chelsea.png", width: 451, height: 300, alt: "Chelsea, a cat" },
  { src: "local:///rocket.jpg", width: 640, height: 427, alt: "Rocket launch" },
  { src: "local:///astronaut.png", width: 512, height: 512, alt: "Eileen Collins" },
  { src: "local:///hubble_deep_field.jpg", width: 1000, height: 872, alt: "Hubble deep field" },
  { src: "local:///retina.jpg", width: 1411, height: 1411, alt: "Retina" },
];
