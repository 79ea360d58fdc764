"""Chemical elements, planets, moons, inventions and discoveries, as plain tables: one row a line, cells between bars.

Only people to whom a thing is credited alone and without much dispute; a dash stands where there is no plain answer.
"""

# element | symbol | atomic number | family | state at room temperature
ELEMENTS = """
hydrogen | H | 1 | - | gas
helium | He | 2 | noble gas | gas
lithium | Li | 3 | alkali metal | solid
beryllium | Be | 4 | alkaline earth metal | solid
boron | B | 5 | metalloid | solid
carbon | C | 6 | nonmetal | solid
nitrogen | N | 7 | nonmetal | gas
oxygen | O | 8 | nonmetal | gas
fluorine | F | 9 | halogen | gas
neon | Ne | 10 | noble gas | gas
sodium | Na | 11 | alkali metal | solid
magnesium | Mg | 12 | alkaline earth metal | solid
aluminium | Al | 13 | metal | solid
silicon | Si | 14 | metalloid | solid
phosphorus | P | 15 | nonmetal | solid
sulfur | S | 16 | nonmetal | solid
chlorine | Cl | 17 | halogen | gas
argon | Ar | 18 | noble gas | gas
potassium | K | 19 | alkali metal | solid
calcium | Ca | 20 | alkaline earth metal | solid
scandium | Sc | 21 | transition metal | solid
titanium | Ti | 22 | transition metal | solid
vanadium | V | 23 | transition metal | solid
chromium | Cr | 24 | transition metal | solid
manganese | Mn | 25 | transition metal | solid
iron | Fe | 26 | transition metal | solid
cobalt | Co | 27 | transition metal | solid
nickel | Ni | 28 | transition metal | solid
copper | Cu | 29 | transition metal | solid
zinc | Zn | 30 | metal | solid
gallium | Ga | 31 | metal | solid
germanium | Ge | 32 | metalloid | solid
arsenic | As | 33 | metalloid | solid
selenium | Se | 34 | nonmetal | solid
bromine | Br | 35 | halogen | liquid
krypton | Kr | 36 | noble gas | gas
rubidium | Rb | 37 | alkali metal | solid
strontium | Sr | 38 | alkaline earth metal | solid
yttrium | Y | 39 | transition metal | solid
zirconium | Zr | 40 | transition metal | solid
niobium | Nb | 41 | transition metal | solid
molybdenum | Mo | 42 | transition metal | solid
technetium | Tc | 43 | transition metal | solid
ruthenium | Ru | 44 | transition metal | solid
rhodium | Rh | 45 | transition metal | solid
palladium | Pd | 46 | transition metal | solid
silver | Ag | 47 | transition metal | solid
cadmium | Cd | 48 | metal | solid
indium | In | 49 | metal | solid
tin | Sn | 50 | metal | solid
antimony | Sb | 51 | metalloid | solid
tellurium | Te | 52 | metalloid | solid
iodine | I | 53 | halogen | solid
xenon | Xe | 54 | noble gas | gas
caesium | Cs | 55 | alkali metal | solid
barium | Ba | 56 | alkaline earth metal | solid
lanthanum | La | 57 | lanthanide | solid
cerium | Ce | 58 | lanthanide | solid
praseodymium | Pr | 59 | lanthanide | solid
neodymium | Nd | 60 | lanthanide | solid
promethium | Pm | 61 | lanthanide | solid
samarium | Sm | 62 | lanthanide | solid
europium | Eu | 63 | lanthanide | solid
gadolinium | Gd | 64 | lanthanide | solid
terbium | Tb | 65 | lanthanide | solid
dysprosium | Dy | 66 | lanthanide | solid
holmium | Ho | 67 | lanthanide | solid
erbium | Er | 68 | lanthanide | solid
thulium | Tm | 69 | lanthanide | solid
ytterbium | Yb | 70 | lanthanide | solid
lutetium | Lu | 71 | - | solid
hafnium | Hf | 72 | transition metal | solid
tantalum | Ta | 73 | transition metal | solid
tungsten | W | 74 | transition metal | solid
rhenium | Re | 75 | transition metal | solid
osmium | Os | 76 | transition metal | solid
iridium | Ir | 77 | transition metal | solid
platinum | Pt | 78 | transition metal | solid
gold | Au | 79 | transition metal | solid
mercury | Hg | 80 | metal | liquid
thallium | Tl | 81 | metal | solid
lead | Pb | 82 | metal | solid
bismuth | Bi | 83 | metal | solid
polonium | Po | 84 | - | solid
radon | Rn | 86 | noble gas | gas
radium | Ra | 88 | alkaline earth metal | solid
actinium | Ac | 89 | actinide | solid
thorium | Th | 90 | actinide | solid
protactinium | Pa | 91 | actinide | solid
uranium | U | 92 | actinide | solid
neptunium | Np | 93 | actinide | solid
plutonium | Pu | 94 | actinide | solid
"""

# planet | place from the Sun
PLANETS = """
Mercury | first
Venus | second
Earth | third
Mars | fourth
Jupiter | fifth
Saturn | sixth
Uranus | seventh
Neptune | eighth
"""

# moon | the planet it orbits
MOONS = """
Phobos | Mars
Deimos | Mars
Io | Jupiter
Europa | Jupiter
Ganymede | Jupiter
Callisto | Jupiter
Amalthea | Jupiter
Titan | Saturn
Enceladus | Saturn
Mimas | Saturn
Tethys | Saturn
Dione | Saturn
Rhea | Saturn
Iapetus | Saturn
Hyperion | Saturn
Phoebe | Saturn
Miranda | Uranus
Ariel | Uranus
Umbriel | Uranus
Titania | Uranus
Oberon | Uranus
Triton | Neptune
Nereid | Neptune
Proteus | Neptune
"""

# invention | inventor
INVENTIONS = """
Bakelite | Leo Baekeland
basketball | James Naismith
the braille alphabet | Louis Braille
the C programming language | Dennis Ritchie
the cotton gin | Eli Whitney
the cyclotron | Ernest Lawrence
the diesel engine | Rudolf Diesel
the difference engine | Charles Babbage
dynamite | Alfred Nobel
Esperanto | Ludwik Zamenhof
the hovercraft | Christopher Cockerell
Kevlar | Stephanie Kwolek
the lightning rod | Benjamin Franklin
the Linux kernel | Linus Torvalds
the mercury barometer | Evangelista Torricelli
the Moog synthesizer | Robert Moog
the Petri dish | Julius Petri
the phonograph | Thomas Edison
the Polaroid camera | Edwin Land
the Python language | Guido van Rossum
Rubik's Cube | Ernő Rubik
the saxophone | Adolphe Sax
the stethoscope | René Laennec
the theremin | Leon Theremin
Velcro | George de Mestral
the voltaic pile | Alessandro Volta
vulcanised rubber | Charles Goodyear
the World Wide Web | Tim Berners-Lee
"""

# discovery | discoverer
DISCOVERIES = """
the ABO blood groups | Karl Landsteiner
the atomic nucleus | Ernest Rutherford
the circulation of the blood | William Harvey
cosmic rays | Victor Hess
deuterium | Harold Urey
the dwarf planet Ceres | Giuseppe Piazzi
the dwarf planet Pluto | Clyde Tombaugh
electromagnetic induction | Michael Faraday
the electron | Joseph John Thomson
the neutron | James Chadwick
penicillin | Alexander Fleming
the planet Uranus | William Herschel
the positron | Carl Anderson
radio waves | Heinrich Hertz
radioactivity | Henri Becquerel
superconductivity | Heike Kamerlingh Onnes
the tomb of Tutankhamun | Howard Carter
the tuberculosis bacterium | Robert Koch
X-rays | Wilhelm Röntgen
"""
